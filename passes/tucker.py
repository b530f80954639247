"""Split convolutions into 1 x 1, k x k and 1 x 1: a Tucker-2 decomposition of the weight over its channels.

    W[o, c, t] ~ sum_pq U[o, p] core[p, q, t] V[c, q]

U and V begin as the leading singular vectors of the weight unfolded along each axis of channels (HOSVD, De Lathauwer
et al., 2000), and are refined in turn, each from the weight projected on the other (HOOI). Kim et al., "Compression of
Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications" (ICLR 2016).

tucker{ratio=3}
tolerance = 10
before:
graph example((%x,), {}) {
  %w = weight "w" #0000000000000000 : f32[8, 6, 3, 3]
  %x = input : f32[2, 6, 5, 6]
  %y = aten.convolution.default(%x, %w, None, [2, 1], [1, 1], [1, 1], False, [0, 0], 1) : f32[2, 8, 3, 6]
  return %y
}
after:
graph example((%x,), {}) {
  %x = input : f32[2, 6, 5, 6]
  %w_inputs = weight "w.inputs" #0000000000000000 : f32[2, 6, 1, 1]
  %y_inputs = aten.convolution.default(%x, %w_inputs, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1) : f32[2, 2, 5, 6]
  %w_core = weight "w.core" #0000000000000000 : f32[3, 2, 3, 3]
  %y_core = aten.convolution.default(%y_inputs, %w_core, None, [2, 1], [1, 1], [1, 1], False, [0, 0], 1) : f32[2, 3, 3, 6]
  %w_outputs = weight "w.outputs" #0000000000000000 : f32[8, 3, 1, 1]
  %y = aten.convolution.default(%y_core, %w_outputs, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1) : f32[2, 8, 3, 6]
  return %y
}
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphc.convolution_factors import (
    decompose,
    plain_convolutions,
    ranks_by_energy,
    ranks_by_ratio,
    tucker_parameters,
)
from graphc.errors import PassError
from graphc.graph import Graph, arguments
from graphc.pipeline import Pass, PassContext

aten = torch.ops.aten


@dataclass(frozen=True)
class Tucker(Pass):
    """Split the convolutions whose path matches `layers` and none of `exclude` (shell patterns; no pattern: all).

    energy: the share of the weight's squares that each axis's rank keeps. ratio: where given, both ranks are instead
    the same share of their channels, such that a layer has `ratio` times fewer parameters. A layer that would not
    become smaller stays as it is, and so does the core of one that was split before. Raises PassError for options out
    of range.
    """

    fidelity = "lossy"
    energy: float = 0.99
    ratio: float = 0.0
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        if not 0 < self.energy <= 1 or (self.ratio != 0 and self.ratio < 1):
            raise PassError(
                f"'{self}' has an option out of range; legal: 0 < energy <= 1, ratio >= 1 (or 0: by energy)"
            )
        result = graph.clone()
        found = plain_convolutions(result, self.layers, self.exclude)
        layers = [node for node in found if not _is_core(result, node)]
        changed = False
        for number, node in enumerate(layers):
            weight = result.weights[str(node.args[1].target)].detach()  # type: ignore[union-attr]
            ranks = ranks_by_ratio(weight, self.ratio) if self.ratio else ranks_by_energy(weight, self.energy)
            if tucker_parameters(weight, ranks) < weight.numel():
                _split(result, node, *decompose(weight, ranks))
                changed = True
            ctx.progress("Tucker decomposition", number + 1, len(layers))
        if not changed:
            return graph
        result.drop_unused()
        return result


def _is_core(graph: Graph, node: fx.Node) -> bool:
    """Whether the convolution lies between the 1 x 1 ones of an earlier split."""
    x = arguments(node)[0]
    around = [x, *node.users] if len(node.users) == 1 else []
    return bool(around) and all(_pointwise(graph, other) for other in around) and x.args[2] is None


def _pointwise(graph: Graph, node: fx.Node) -> bool:
    weight = graph.weight(node.args[1]) if node.target is aten.convolution.default else None
    return weight is not None and math.prod(weight.shape[2:]) == 1


def _split(graph: Graph, node: fx.Node, left: Tensor, core: Tensor, right: Tensor) -> None:
    x, source, bias, stride, padding, dilation, *_ = arguments(node)
    name, none, one = str(source.target), [0] * len(stride), [1] * len(stride)

    def pointwise(matrix: Tensor, end: str) -> fx.Node:
        shaped = matrix.reshape(*matrix.shape, *(1 for _ in stride)).contiguous()
        return graph.add_weight(f"{name}.{end}", shaped)

    with graph.at(node):
        low = graph.call(
            aten.convolution.default, x, pointwise(right.T, "inputs"), None, one, none, one, False, none, 1,
            name=f"{node.name}_inputs",
        )  # fmt: skip
        middle = graph.call(
            aten.convolution.default, low, graph.add_weight(f"{name}.core", core), None, stride, padding, dilation,
            False, none, 1, name=f"{node.name}_core",
        )  # fmt: skip
        high = graph.call(
            aten.convolution.default, middle, pointwise(left, "outputs"), bias, one, none, one, False, none, 1
        )
    graph.replace(node, high)
