"""Give neighbouring layers weights of like ranges by moving scales through the relu between them; the function stays.

    relu(s x) = s relu(x) for s > 0:   W1' = W1 / s   b1' = b1 / s   W2' = W2 * s     (s along the channels between)
    s = sqrt(r1 r2) / r2               r1, r2: max|w| of each channel in W1 (outputs) and W2 (inputs)

so that both have the range sqrt(r1 r2) (Nagel et al., "Data-Free Quantization", ICCV 2019, section 4.1, equation 11). Needs
no data. Chains are swept until no scale changes by much.

before:
graph example((%x,), {}) {
  %v = weight "first" #0000000000000000 : f32[4, 8]
  %w = weight "second" #0000000000000000 : f32[3, 4]
  %x = input : f32[2, 8]
  %y = aten.linear.default(%x, %v, None) : f32[2, 4]
  %r = aten.relu.default(%y) : f32[2, 4]
  %z = aten.linear.default(%r, %w, None) : f32[2, 3]
  return %z
}
after:
graph example((%x,), {}) {
  %x = input : f32[2, 8]
  %first_equalized = weight "first.equalized" #0000000000000000 : f32[4, 8]
  %y = aten.linear.default(%x, %first_equalized, None) : f32[2, 4]
  %r = aten.relu.default(%y) : f32[2, 4]
  %second_equalized = weight "second.equalized" #0000000000000000 : f32[3, 4]
  %z = aten.linear.default(%r, %second_equalized, None) : f32[2, 3]
  return %z
}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphc.graph import Graph, arguments
from graphc.pipeline import Pass, PassContext

aten = torch.ops.aten
LAYERS = (aten.convolution.default, aten.linear.default)
_SWEEPS = 100
_SETTLED = 0.01  # a scale that is this near to 1 is left


@dataclass(frozen=True)
class CrossLayerEqualization(Pass):
    """Equalize each pair of layers with nothing but a relu between them, whose values nothing else reads."""

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        result = graph.clone()
        pairs = [pair for node in result.calls if (pair := _pair(result, node)) is not None]
        # In double precision until the end, so that equalizing rounds once.
        weights = {layer: _stored(result, layer, 1).double() for pair in pairs for layer in pair}  # type: ignore[union-attr]
        biases = {layer: _stored(result, layer, 2) for layer, _ in pairs}
        wide = {layer: None if bias is None else bias.double() for layer, bias in biases.items()}
        moved: set[fx.Node] = set()
        for _ in range(_SWEEPS):
            if not any([_equalize(pair, weights, wide, moved) for pair in pairs]):
                break
        if not moved:
            return graph
        for layer in [node for node in result.calls if node in moved]:
            args = arguments(layer)
            with result.at(layer):
                stem = str(args[1].target)
                args[1] = result.add_weight(f"{stem}.equalized", weights[layer].to(torch.float32))
                bias = wide.get(layer)
                if bias is not None:
                    args[2] = result.add_weight(f"{args[2].target}.equalized", bias.to(torch.float32))
            layer.args = tuple(args)
        result.drop_unused()
        return result


def _pair(graph: Graph, second: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The layer before and this one, where a scale of the channels between them can move."""
    if not _takes(graph, second):
        return None
    between = second.args[0]
    while isinstance(between, fx.Node) and between.target is aten.relu.default and len(between.users) == 1:
        between = between.args[0]
    if not isinstance(between, fx.Node) or len(between.users) != 1 or not _takes(graph, between):
        return None
    # The channels must lie along the same dimension: a linear layer takes those of the last one.
    return (between, second) if between.target is second.target else None


def _takes(graph: Graph, node: fx.Node) -> bool:
    if node.target not in LAYERS:
        return False
    weight, bias = _stored(graph, node, 1), _stored(graph, node, 2)
    transposed = node.target is aten.convolution.default and arguments(node)[6]
    known = weight is not None and weight.dtype == torch.float32 and not transposed
    return known and (arguments(node)[2] is None or bias is not None)


def _stored(graph: Graph, layer: fx.Node, place: int) -> Tensor | None:
    return graph.weight(arguments(layer)[place])


def _equalize(
    pair: tuple[fx.Node, fx.Node],
    weights: dict[fx.Node, Tensor],
    biases: dict[fx.Node, Tensor | None],
    moved: set[fx.Node],
) -> bool:
    first, second = pair
    groups = int(arguments(second)[8]) if second.target is aten.convolution.default else 1
    outputs = weights[first].abs().flatten(1).amax(1)
    # [O, C / groups, ...] -> the largest of each input channel, over the outputs of its group: [C]
    inputs = weights[second].abs().flatten(2) if weights[second].dim() > 2 else weights[second].abs().unsqueeze(-1)
    inputs = inputs.amax(2).unflatten(0, (groups, -1)).amax(1).flatten()
    alive = (outputs > 0) & (inputs > 0)
    scale = torch.where(alive, (outputs / inputs.where(alive, torch.ones_like(inputs))).sqrt(), 1.0)
    if bool(((scale - 1).abs() <= _SETTLED).all()):
        return False
    weights[first] = weights[first] / scale.reshape(-1, *[1] * (weights[first].dim() - 1))
    bias = biases[first]
    biases[first] = None if bias is None else bias / scale
    spread = scale.unflatten(0, (groups, 1, -1)).expand(-1, weights[second].shape[0] // groups, -1).flatten(0, 1)
    weights[second] = weights[second] * spread.reshape(*spread.shape, *[1] * (weights[second].dim() - 2))
    moved.update(pair)
    return True
