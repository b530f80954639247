"""Rounding that gradients pass straight through (Bengio et al., "Estimating or Propagating Gradients", 2013)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.factor, None


class _Quantized(torch.autograd.Function):
    """One function for its whole formula: autograd over the four operators of it reads and writes thrice the memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
        steps = x.to(torch.float32) / step
        result = steps.round().clamp_(low, high).mul_(step)
        ctx.save_for_backward(steps, result, step)
        ctx.bounds = (low, high)
        return result.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        steps, result, step = ctx.saved_tensors
        given = gradients[0].to(torch.float32)
        passed = torch.ops.aten.hardtanh_backward(given, steps, *ctx.bounds)  # nought outside of the bounds
        of_step = _product(given, result) / step - _product(passed, steps)
        return passed.to(gradients[0].dtype), of_step, None, None


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The sum of the products of two tensors of one shape: f32 []."""
    if a.dim() == 4 and b.is_contiguous(memory_format=torch.channels_last):  # so that no copy is made
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


def rounded(x: Tensor) -> Tensor:
    """Half to even, of x's shape and dtype; d rounded(x) / dx = 1."""
    result: Tensor = _Rounded.apply(x)  # type: ignore[no-untyped-call]
    return result


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The same values; their gradient is `factor` times what comes."""
    result: Tensor = _ScaledGradient.apply(x, factor)  # type: ignore[no-untyped-call]
    return result


def quantized(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """clamp(round(x / step), low, high) * step, of x's shape and dtype; computed in f32.

    step: f32 []. Gradients are those of rounding straight through (Esser et al., "Learned Step Size Quantization", ICLR
    2020, equation 3): d/dx = 1 inside of the bounds, else 0; d/dstep = round(v) - v inside, the bound itself outside.

    >>> quantized(torch.tensor([0.2, 0.9, 7.0]), torch.tensor(0.5), 0, 3)
    tensor([0.0000, 1.0000, 1.5000])
    """
    result: Tensor = _Quantized.apply(x, step, low, high)  # type: ignore[no-untyped-call]
    return result
