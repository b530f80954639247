"""ONNX operators that reduce over axes; each over torch tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from graphc.frontends.onnx.operator import Known, axes_of, operator


def _product(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = torch.prod(x, axis, keepdim, dtype=x.dtype)
    return x


def _sum(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return torch.sum(x, axes, keepdim, dtype=x.dtype)


# Each takes the tensor, the axes (never empty), and whether to keep them with size one.
REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: _sum(x * x, axes, keep).sqrt(),
    "ReduceLogSum": lambda x, axes, keep: _sum(x, axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keep),
    "ReduceMax": lambda x, axes, keep: torch.amax(x, axes, keep),
    "ReduceMean": lambda x, axes, keep: torch.mean(x, axes, keep),
    "ReduceMin": lambda x, axes, keep: torch.amin(x, axes, keep),
    "ReduceProd": _product,
    "ReduceSum": _sum,
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
}


def _enter_reductions() -> None:
    def reduction(function: Callable[[Tensor, list[int], bool], Tensor]) -> Callable[..., Tensor]:
        def apply(
            x: Tensor,
            axes_input: Known | None = None,
            /,
            *,
            axes: list[int] | None = None,
            keepdims: int = 1,
            noop_with_empty_axes: int = 0,
        ) -> Tensor:
            chosen = axes_of(axes_input, axes)
            if not chosen and noop_with_empty_axes:
                return function(x.unsqueeze(0), [0], False)  # nothing is summed up, the rest of the formula holds
            return function(x, chosen or list(range(x.dim())), bool(keepdims))

        return apply

    for name, function in REDUCTIONS.items():
        operator(name)(reduction(function))


_enter_reductions()


def _arg(function: Any, x: Tensor, axis: int, keepdims: int, last: int) -> Tensor:
    if last:
        return x.shape[axis] - 1 - _arg(function, x.flip(axis), axis, keepdims, 0)
    result: Tensor = function(x, axis, bool(keepdims))
    return result


@operator("ArgMax")
def argmax(x: Tensor, /, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(torch.argmax, x, axis, keepdims, select_last_index)


@operator("ArgMin")
def argmin(x: Tensor, /, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    return _arg(torch.argmin, x, axis, keepdims, select_last_index)


@operator("TopK")
def topk(
    x: Tensor, count: Known | None = None, /, *, axis: int = -1, k: int = 0, largest: int = 1, sorted: int = 1
) -> tuple[Tensor, Tensor]:
    values, indices = torch.topk(x, k if count is None else count.item(), axis, bool(largest), bool(sorted))
    return values, indices


@operator("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, /, *, axes: list[int] | None = None) -> Tensor:
    chosen = [0, 2, 3] if axes is None else axes
    centred = x - x.mean(chosen, keepdim=True)
    return centred / (centred.square().mean(chosen, keepdim=True).sqrt() + 1e-9)
