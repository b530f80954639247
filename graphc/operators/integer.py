"""Integer arithmetic on quantized values: int8 operands, int32 sums. `rescale` takes the sums back to int8."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _exact(largest_sum: Tensor) -> torch.dtype:
    """A float type in which integer sums up to `largest_sum` are exact: torch has no fast integer convolution."""
    return torch.float32 if float(largest_sum) < 2**24 else torch.float64


@torch.library.custom_op("graphc::integer_convolution", mutates_args=())
def integer_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_zero: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """sum over taps of (x - x_zero) * weight, plus bias; padding contributes nought.

    x: int8 or uint8 [N, C, *spatial], one or two spatial dimensions. weight: int8 [O, C / groups, *taps].
    bias: i32 [O] or None. Returns i32 [N, O, *spatial'].
    """
    largest = 255 * weight.to(torch.float64).abs().flatten(1).sum(1).max()
    dtype = _exact(largest)
    convolution = F.conv1d if x.dim() == 3 else F.conv2d
    sums = convolution((x.to(dtype) - x_zero), weight.to(dtype), None, stride, padding, dilation, groups).to(
        torch.int32
    )
    return sums if bias is None else sums + bias.reshape(-1, *[1] * (x.dim() - 2))


@integer_convolution.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_zero: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    sizes = [
        (size + 2 * pad - step * (taps - 1) - 1) // jump + 1
        for size, taps, jump, pad, step in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    ]
    return x.new_empty([x.shape[0], weight.shape[0], *sizes], dtype=torch.int32)


@torch.library.custom_op("graphc::integer_linear", mutates_args=())
def integer_linear(x: Tensor, weight: Tensor, bias: Tensor | None, x_zero: int) -> Tensor:
    """(x - x_zero) @ weight^T + bias.

    x: int8 or uint8 [..., I]. weight: int8 [O, I]. bias: i32 [O] or None. Returns i32 [..., O].
    """
    dtype = _exact(255 * weight.to(torch.float64).abs().sum(1).max())
    sums = F.linear(x.to(dtype) - x_zero, weight.to(dtype)).to(torch.int32)
    return sums if bias is None else sums + bias


@integer_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, x_zero: int) -> Tensor:
    return x.new_empty([*x.shape[:-1], weight.shape[0]], dtype=torch.int32)


@torch.library.custom_op("graphc::integer_sum_pool2d", mutates_args=())
def integer_sum_pool2d(x: Tensor, x_zero: int, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Sum of (x - x_zero) over each window; padding contributes nought.

    x: int8 or uint8 [N, C, H, W]. Returns i32 [N, C, H', W'].
    """
    channels = x.shape[1]
    ones = torch.ones([channels, 1, *kernel])
    return F.conv2d(x.to(torch.float32) - x_zero, ones, None, stride, padding, groups=channels).to(torch.int32)


@integer_sum_pool2d.register_fake
def _(x: Tensor, x_zero: int, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    sizes = [
        (size + 2 * pad - taps) // jump + 1
        for size, taps, jump, pad in zip(x.shape[2:], kernel, stride, padding, strict=True)
    ]
    return x.new_empty([*x.shape[:2], *sizes], dtype=torch.int32)
