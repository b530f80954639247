"""Convolutions as several smaller ones: which may be split, and the factors of their weights.

W[o, c, t] ~ p[o, c] d[c, t]                            depthwise, then 1 x 1   (rank_one)
W[o, c, t] ~ sum_pq U[o, p] core[p, q, t] V[c, q]       1 x 1, k x k, 1 x 1     (decompose: Tucker-2)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatch

import torch
from torch import Tensor, fx

from graphc.graph import Graph, arguments

_TURNS = 4


def plain_convolutions(graph: Graph, layers: Sequence[str], exclude: Sequence[str]) -> list[fx.Node]:
    """The convolutions of more than one tap, by an f32 weight that nothing else reads, not in groups, not transposed,
    whose path matches `layers` (shell patterns; none: all) and none of `exclude`."""
    return [node for node in graph.calls if _is_plain(graph, node) and _wanted(node.meta["path"], layers, exclude)]


def _is_plain(graph: Graph, node: fx.Node) -> bool:
    if node.target is not torch.ops.aten.convolution.default:
        return False
    _, source, *_, transposed, _, groups = arguments(node)
    weight = graph.weight(source)
    if weight is None or weight.dtype != torch.float32 or groups != 1 or transposed:
        return False
    return len(source.users) == 1 and math.prod(weight.shape[2:]) > 1


def _wanted(path: str, layers: Sequence[str], exclude: Sequence[str]) -> bool:
    if any(fnmatch(path, pattern) for pattern in exclude):
        return False
    return not layers or any(fnmatch(path, pattern) for pattern in layers)


# -- depthwise and 1 x 1 --------------------------------------------------------------------------


def rank_one(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[O, C, *kernel] -> [C, 1, *kernel], [O, C, 1 ...]; the largest tap of each kernel is positive."""
    kernel = weight.shape[2:]
    left, values, right = torch.linalg.svd(weight.double().flatten(2).transpose(0, 1), full_matrices=False)
    taps, mix = right[:, 0], left[:, :, 0] * values[:, :1]
    sign = taps.gather(1, taps.abs().argmax(1, keepdim=True)).sign()
    depthwise = (taps * sign).reshape(-1, 1, *kernel)
    pointwise = (mix * sign).T.reshape(*weight.shape[:2], *(1 for _ in kernel))
    return depthwise.to(weight.dtype).contiguous(), pointwise.to(weight.dtype).contiguous()


def random_factors(weight: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """As `rank_one`, normal, with the power of the weight's entries."""
    kernel = weight.shape[2:]
    depthwise = torch.randn(weight.shape[1], 1, *kernel, generator=generator) / kernel.numel() ** 0.5
    pointwise = torch.randn(*weight.shape[:2], *(1 for _ in kernel), generator=generator)
    return depthwise, pointwise * weight.square().mean().sqrt() * kernel.numel() ** 0.5


def saved_parameters(weight: Tensor) -> int:
    """Parameters of [O, C, *kernel] less those of [C, *kernel] and [O, C]; none for a kernel of one tap."""
    outputs, inputs, *kernel = weight.shape
    taps = math.prod(kernel)
    return inputs * (outputs * taps - taps - outputs) if taps > 1 else 0


# -- Tucker-2 -------------------------------------------------------------------------------------


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


def ranks_by_energy(weight: Tensor, energy: float) -> tuple[int, int]:
    """The least ranks that keep this share of the squares of the weight unfolded along each axis of channels."""
    full = weight.double().flatten(2)
    ranks = []
    for unfolded in (full.flatten(1), full.transpose(0, 1).flatten(1)):
        kept = torch.linalg.svdvals(unfolded).square().cumsum(0)
        ranks.append(1 + int((kept < energy * kept[-1]).sum()))
    return min(ranks[0], weight.shape[0]), min(ranks[1], weight.shape[1])


def ranks_by_ratio(weight: Tensor, ratio: float) -> tuple[int, int]:
    """The share s of all channels with taps O C s^2 + (O^2 + C^2) s = taps O C / ratio, rounded down."""
    outputs, inputs, taps = weight.shape[0], weight.shape[1], math.prod(weight.shape[2:])
    squared, linear = taps * outputs * inputs, outputs**2 + inputs**2
    share = (math.sqrt(linear**2 + 4 * squared**2 / ratio) - linear) / (2 * squared)
    return max(1, int(share * outputs)), max(1, int(share * inputs))


def tucker_parameters(weight: Tensor, ranks: tuple[int, int]) -> int:
    """Of the three factors of [O, C, *kernel] together."""
    outputs, inputs, *kernel = weight.shape
    return outputs * ranks[0] + inputs * ranks[1] + math.prod(ranks) * math.prod(kernel)
