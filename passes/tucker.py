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
from fnmatch import fnmatch

import torch
from torch import Tensor, fx

from graphc.errors import PassError
from graphc.graph import Graph, arguments
from graphc.pipeline import Pass, PassContext

aten = torch.ops.aten
_TURNS = 4


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
        layers = [node for node in result.calls if self._takes(result, node)]
        changed = False
        for number, node in enumerate(layers):
            weight = result.weights[str(node.args[1].target)].detach()  # type: ignore[union-attr]
            ranks = _ranks_by_ratio(weight, self.ratio) if self.ratio else _ranks_by_energy(weight, self.energy)
            if _parameters(weight, ranks) < weight.numel():
                _split(result, node, *decompose(weight, ranks))
                changed = True
            ctx.progress("Tucker decomposition", number + 1, len(layers))
        if not changed:
            return graph
        result.drop_unused()
        return result

    def _takes(self, graph: Graph, node: fx.Node) -> bool:
        if node.target is not aten.convolution.default or any(fnmatch(node.meta["path"], p) for p in self.exclude):
            return False
        if self.layers and not any(fnmatch(node.meta["path"], pattern) for pattern in self.layers):
            return False
        x, source, *_, transposed, _, groups = arguments(node)
        weight = graph.weight(source)
        plain = weight is not None and weight.dtype == torch.float32 and groups == 1 and not transposed
        around = [x, *node.users] if len(node.users) == 1 else []
        core = bool(around) and all(_pointwise(graph, other) for other in around) and x.args[2] is None
        return plain and len(source.users) == 1 and math.prod(weight.shape[2:]) > 1 and not core  # type: ignore[union-attr]


def _pointwise(graph: Graph, node: fx.Node) -> bool:
    weight = graph.weight(node.args[1]) if node.target is aten.convolution.default else None
    return weight is not None and math.prod(weight.shape[2:]) == 1


def decompose(weight: Tensor, ranks: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """[O, C, *kernel] and the ranks (p, q) of its outputs and inputs -> U [O, p], core [p, q, *kernel], V [C, q].

    U and V have orthonormal columns; the largest entry of each is positive.
    """
    full = weight.double().flatten(2)
    left, right = _leading(full, ranks[0]), _leading(full.transpose(0, 1), ranks[1])
    for _ in range(_TURNS):
        left = _leading(torch.einsum("oct,cq->oqt", full, right), ranks[0])
        right = _leading(torch.einsum("oct,op->cpt", full, left), ranks[1])
    core = torch.einsum("oct,op,cq->pqt", full, left, right).reshape(*ranks, *weight.shape[2:])
    return left.to(weight.dtype), core.to(weight.dtype), right.to(weight.dtype)


def _leading(tensor: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors of a tensor unfolded along its first axis, as columns."""
    vectors: Tensor = torch.linalg.svd(tensor.flatten(1), full_matrices=False)[0][:, :rank]
    signs: Tensor = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    return vectors * signs


def _ranks_by_energy(weight: Tensor, energy: float) -> tuple[int, int]:
    full = weight.double().flatten(2)
    ranks = []
    for unfolded in (full.flatten(1), full.transpose(0, 1).flatten(1)):
        kept = torch.linalg.svdvals(unfolded).square().cumsum(0)
        ranks.append(1 + int((kept < energy * kept[-1]).sum()))
    return min(ranks[0], weight.shape[0]), min(ranks[1], weight.shape[1])


def _ranks_by_ratio(weight: Tensor, ratio: float) -> tuple[int, int]:
    """The share s of all channels with taps O C s^2 + (O^2 + C^2) s = taps O C / ratio, rounded down."""
    outputs, inputs, taps = weight.shape[0], weight.shape[1], math.prod(weight.shape[2:])
    squared, linear = taps * outputs * inputs, outputs**2 + inputs**2
    share = (math.sqrt(linear**2 + 4 * squared**2 / ratio) - linear) / (2 * squared)
    return max(1, int(share * outputs)), max(1, int(share * inputs))


def _parameters(weight: Tensor, ranks: tuple[int, int]) -> int:
    outputs, inputs, *kernel = weight.shape
    return outputs * ranks[0] + inputs * ranks[1] + math.prod(ranks) * math.prod(kernel)


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
