"""Store the weights of layers and embeddings in a compressed format: each becomes the expression that decodes it.

    w  ->  decode(encode(w)), the decoding as operators over the stored parts (see graphc.formats)

Activations stay as they are. A convolution's weight is stored as the matrix [O, C * taps]. With `data` the second
moments of the layers' inputs are measured first, and formats make small what the layers' outputs lose (graphc.moments).
An embedding gives a row of its weight as it is, so each element's error counts alike: its moments are the identity.

before:
graph example((%x,), {}) {
  %w = weight "w" #0000000000000000 : f32[4, 8]
  %x = input : f32[2, 8]
  %y = aten.linear.default(%x, %w, None) : f32[2, 4]
  return %y
}
after:
graph example((%x,), {}) {
  %x = input : f32[2, 8]
  %w_codes = weight "w.codes" #0000000000000000 : i8[4, 8]
  %w_scale = weight "w.scale" #0000000000000000 : f16[4, 1]
  %dequantize_groups_default = graphc.dequantize_groups.default(%w_codes, %w_scale, None, 8) : f32[4, 8]
  %y = aten.linear.default(%x, %dequantize_groups_default, None) : f32[2, 4]
  return %y
}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from torch import Tensor, fx

from graphc import formats
from graphc.errors import FormatError
from graphc.graph import Graph, arguments
from graphc.moments import second_moments
from graphc.pipeline import Pass, PassContext

aten = torch.ops.aten
# What reads a stored weight [rows, ...] -> its place among the arguments.
READERS: dict[Any, int] = {aten.convolution.default: 1, aten.linear.default: 1, aten.embedding.default: 0}
Unfit = Literal["error", "keep"]


@dataclass(frozen=True)
class Compress(Pass):
    """Compress the layers whose path matches `layers` and none of `exclude` (shell patterns); no pattern: all.

    unfit: what becomes of a layer whose shape the format cannot take, "error" or "keep" (it stays as it is). data:
    encode with the second moments of the layers' inputs over `ctx.calibration`; CalibrationError where there is none.
    """

    fidelity = "lossy"
    format: str = "linear"
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    unfit: Unfit = "error"
    data: bool = False

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        return self.encoded(graph, self.moments(graph, ctx) if self.data else {}, ctx)

    def moments(self, graph: Graph, ctx: PassContext) -> dict[str, Tensor]:
        """The second moments of what each weight meets (graphc.moments), by the weight's name."""
        return _moments(graph, [node for node in graph.calls if self._takes(graph, node)], ctx)

    def encoded(self, graph: Graph, moments: Mapping[str, Tensor], ctx: PassContext) -> Graph:
        """What `run` gives with these moments."""
        result = graph.clone()
        layers = [node for node in result.calls if self._takes(result, node)]
        matrices = (result.weights[weight_name(node)].detach().flatten(1) for node in layers)
        chosen = formats.parse(self.format).fitted(matrices)
        expressions: dict[str, fx.Node] = {}  # of weights that several layers share
        for number, layer in enumerate(layers):
            ctx.progress("compressing", number, len(layers))
            args = arguments(layer)
            name = weight_name(layer)
            if name not in expressions:
                try:
                    with result.at(layer):
                        expressions[name] = _expression(result, chosen, name, layer, moments.get(name))
                except FormatError:
                    if self.unfit == "error":
                        raise
                    continue
            args[READERS[layer.target]] = expressions[name]
            layer.args = tuple(args)
        if not expressions:
            return graph
        ctx.progress("compressing", len(layers), len(layers))
        result.drop_unused()
        return result

    def _takes(self, graph: Graph, node: fx.Node) -> bool:
        if not takes(graph, node) or any(fnmatch(node.meta["path"], pattern) for pattern in self.exclude):
            return False
        return not self.layers or any(fnmatch(node.meta["path"], pattern) for pattern in self.layers)


def takes(graph: Graph, node: fx.Node) -> bool:
    """Whether a node is a layer or an embedding with a stored f32 weight."""
    weight = graph.weight(node.args[READERS[node.target]]) if node.target in READERS else None
    return weight is not None and weight.dtype == torch.float32


def weight_name(layer: fx.Node) -> str:
    """The weight of a node that `takes` names."""
    return str(layer.args[READERS[layer.target]].target)  # type: ignore[union-attr]


def _moments(graph: Graph, layers: list[fx.Node], ctx: PassContext) -> dict[str, Tensor]:
    """By weight: the mean over the layers that share it; the identity where only embeddings read it."""
    found = second_moments(graph, layers, ctx)
    shared: dict[str, list[Tensor]] = {}
    for layer, moments in found.items():
        shared.setdefault(weight_name(layer), []).append(moments)
    for layer in layers:
        if layer.target is aten.embedding.default and weight_name(layer) not in shared:
            shared[weight_name(layer)] = [torch.eye(graph.weights[weight_name(layer)].shape[1], dtype=torch.float64)]
    return {name: torch.stack(several).mean(0) if len(several) > 1 else several[0] for name, several in shared.items()}


def _expression(graph: Graph, chosen: formats.Format, name: str, layer: fx.Node, moments: Tensor | None) -> fx.Node:
    weight = graph.weights[name]
    matrix = weight.detach().flatten(1)
    shape = (matrix.shape[0], matrix.shape[1])
    try:
        decoded = chosen.express(graph, chosen.encode(matrix, moments), shape, name)
    except FormatError as error:
        where = f" of layer '{layer.meta['path']}'" if layer.meta["path"] else ""
        raise FormatError(f"weight '{name}'{where}: {error}; or leave it out: compress{{exclude=[...]}}") from None
    if weight.dim() == 2:
        return decoded
    return graph.call(aten.view.default, decoded, list(weight.shape))
