"""Replace k x k convolutions by a depthwise one and a 1 x 1 one, where the results lose least for what is saved.

    W[o, c] ~ p[o, c] d[c]   for each input channel c: the best rank-1 matrix of W[:, c] as [O, taps], by its SVD

Each layer's substitution is measured alone, by the error that it makes in the results on the calibration data. Then
layers are replaced in the order of error per parameter saved, as long as all of them together keep the bound. This is
the substitution and the search of positions of DSC-JSCC (arXiv:2604.22338).

separate_convolutions{error=2}
tolerance = 10
before:
graph example((%x,), {}) {
  %w = weight "w" #0000000000000000 : f32[6, 4, 3, 3]
  %x = input : f32[2, 4, 5, 6]
  %y = aten.convolution.default(%x, %w, None, [2, 1], [1, 1], [1, 1], False, [0, 0], 1) : f32[2, 6, 3, 6]
  return %y
}
after:
graph example((%x,), {}) {
  %x = input : f32[2, 4, 5, 6]
  %w_depthwise = weight "w.depthwise" #0000000000000000 : f32[4, 1, 3, 3]
  %y_depthwise = aten.convolution.default(%x, %w_depthwise, None, [2, 1], [1, 1], [1, 1], False, [0, 0], 4) : f32[2, 4, 3, 6]
  %w_pointwise = weight "w.pointwise" #0000000000000000 : f32[6, 4, 1, 1]
  %y = aten.convolution.default(%y_depthwise, %w_pointwise, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1) : f32[2, 6, 3, 6]
  return %y
}
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from graphc.calibration import fitting_threads
from graphc.convolution_factors import plain_convolutions, random_factors, rank_one, saved_parameters
from graphc.errors import CalibrationError
from graphc.graph import Graph, arguments
from graphc.pipeline import Pass, PassContext

aten = torch.ops.aten
Initial = Literal["svd", "random"]


@dataclass(frozen=True)
class Position:
    """One layer's substitution: the node's name, the user's path, parameters saved, and the results' error: their
    squared change over their square, on the calibration data."""

    name: str
    path: str
    saved: int
    error: float


@dataclass(frozen=True)
class SeparateConvolutions(Pass):
    """Replace convolutions whose path matches `layers` and none of `exclude` (shell patterns; no pattern: all).

    error: bound on the squared change of the results over their square, for all substitutions together; inf: all are
    replaced, and nothing is measured. initial: "svd" as above; "random" is normal with the original weight's power, for
    training from scratch and for comparison. Raises CalibrationError where there is no data to measure with.
    """

    fidelity = "lossy"
    error: float = 1e-3
    initial: Initial = "svd"
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        chosen: list[str] = []
        if math.isinf(self.error):  # whatever it costs: there is nothing to measure
            chosen = [node.name for node in self._saved(graph)]
            return separate(graph, chosen, self.initial, ctx.seed) if chosen else graph
        found = sorted(self.positions(graph, ctx), key=lambda position: position.error / position.saved)
        expected = _results(graph, ctx) if found else []
        for position in found:
            if position.error > self.error:
                continue
            trial = separate(graph, [*chosen, position.name], self.initial, ctx.seed)
            if _error(expected, _results(trial, ctx)) <= self.error:
                chosen.append(position.name)
        return separate(graph, chosen, self.initial, ctx.seed) if chosen else graph

    def positions(self, graph: Graph, ctx: PassContext) -> list[Position]:
        """What each substitution alone saves and costs, in the order of the graph."""
        layers = self._saved(graph)
        if layers and not ctx.calibration:
            raise CalibrationError(
                "separate_convolutions needs calibration data to measure the error of each layer with"
            )
        expected = _results(graph, ctx) if layers else []
        found = []
        for number, (node, saved) in enumerate(layers.items()):
            error = _error(expected, _results(separate(graph, [node.name], self.initial, ctx.seed), ctx))
            found.append(Position(node.name, node.meta["path"], saved, error))
            ctx.progress("substitutions", number + 1, len(layers))
        return found

    def _saved(self, graph: Graph) -> dict[fx.Node, int]:
        """The parameters that each layer's substitution saves, where it does."""
        plain = plain_convolutions(graph, self.layers, self.exclude)
        saved = {node: saved_parameters(graph.weights[str(arguments(node)[1].target)]) for node in plain}
        return {node: count for node, count in saved.items() if count > 0}


def separate(graph: Graph, names: Collection[str], initial: Initial = "svd", seed: int = 0) -> Graph:
    """The graph with the convolutions of these node names replaced, wherever that leads."""
    result = graph.clone()
    generator = torch.Generator().manual_seed(seed)
    for node in result.calls:
        if node.name in names:
            x, source, bias, stride, padding, dilation, *_ = arguments(node)
            name, weight = str(source.target), result.weights[str(source.target)].detach()
            depthwise, pointwise = rank_one(weight) if initial == "svd" else random_factors(weight, generator)
            none, one = [0] * len(stride), [1] * len(stride)
            with result.at(node):
                taps = result.add_weight(f"{name}.depthwise", depthwise)
                channels = result.call(
                    aten.convolution.default, x, taps, None, stride, padding, dilation, False, none, weight.shape[1],
                    name=f"{node.name}_depthwise",
                )  # fmt: skip
                mix = result.add_weight(f"{name}.pointwise", pointwise)
                mixed = result.call(aten.convolution.default, channels, mix, bias, one, none, one, False, none, 1)
            result.replace(node, mixed)
    result.drop_unused()
    return result


def _results(graph: Graph, ctx: PassContext) -> list[Tensor]:
    with torch.no_grad(), fitting_threads(graph):
        return [value for batch in ctx.calibration for value in graph.run_flat(batch) if value.is_floating_point()]


def _error(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    lost = sum(float((a - b).double().square().sum()) for a, b in zip(expected, found, strict=True))
    return lost / max(sum(float(value.double().square().sum()) for value in expected), 1e-300)
