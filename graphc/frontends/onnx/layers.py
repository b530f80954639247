"""ONNX operators with weights or windows, over torch tensors: convolution, matrix product, pooling, normalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from graphc.frontends.onnx.operator import UnsupportedAttribute, operator

AutoPad: TypeAlias = Literal["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]
Ints: TypeAlias = list[int] | None
Padding: TypeAlias = list[tuple[Any, Any]]  # before and after, for each spatial dimension


def window_padding(
    sizes: Sequence[Any],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Ints,
    auto: AutoPad,
) -> Padding:
    """The padding of each spatial dimension: from `pads` (all befores, then all afters) or by the `auto` rule."""
    rank = len(kernel)
    if auto in ("NOTSET", "VALID"):
        pads = pads if pads is not None and auto == "NOTSET" else [0] * 2 * rank
        return list(zip(pads[:rank], pads[rank:], strict=True))
    padding: Padding = []
    for size, taps, step, spread in zip(sizes, kernel, stride, dilation, strict=True):
        total = _at_least_zero(((size + step - 1) // step - 1) * step + (taps - 1) * spread + 1 - size)
        padding.append((total // 2, total - total // 2) if auto == "SAME_UPPER" else (total - total // 2, total // 2))
    return padding


def _at_least_zero(size: Any) -> Any:
    return torch.sym_max(size, 0)


def pad_outside(x: Tensor, padding: Padding, kernel: Sequence[int], value: float) -> tuple[Tensor, list[Any]]:
    """Leave padding to the operator where torch can express it there, else pad here with `value`."""
    if all(before == after and before <= taps // 2 for (before, after), taps in zip(padding, kernel, strict=True)):
        return x, [before for before, _ in padding]
    return F.pad(x, [amount for pair in reversed(padding) for amount in pair], value=value), [0] * len(padding)


@operator("Conv")
def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    /,
    *,
    auto_pad: AutoPad = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    kernel, rank = weight.shape[2:], weight.dim() - 2
    stride, dilation = strides or [1] * rank, dilations or [1] * rank
    padding = window_padding(x.shape[2:], kernel, stride, dilation, pads, auto_pad)
    if any(before != after for before, after in padding):
        x, padding = F.pad(x, [amount for pair in reversed(padding) for amount in pair]), [(0, 0)] * rank
    symmetric = [before for before, _ in padding]
    return torch.convolution(x, weight, bias, stride, symmetric, dilation, False, [0] * rank, group)


@operator("ConvTranspose")
def transposed_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    /,
    *,
    auto_pad: AutoPad = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    output_padding: Ints = None,
    output_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    rank = weight.dim() - 2
    stride, dilation, extra = strides or [1] * rank, dilations or [1] * rank, output_padding or [0] * rank
    spatial = zip(x.shape[2:], weight.shape[2:], stride, dilation, strict=True)
    full = [(size - 1) * step + (taps - 1) * spread + 1 for size, taps, step, spread in spatial]
    crop = window_padding(full, weight.shape[2:], stride, dilation, pads, "NOTSET")
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        wanted = output_shape or [size * step for size, step in zip(x.shape[2:], stride, strict=True)]
        totals = [_at_least_zero(a + more - b) for a, more, b in zip(full, extra, wanted[-rank:], strict=True)]
        halves = [(total // 2, total - total // 2) for total in totals]
        crop = halves if auto_pad == "SAME_UPPER" else [(after, before) for before, after in halves]
    if all(before == after for before, after in crop) and all(
        more < max(step, spread) for more, step, spread in zip(extra, stride, dilation, strict=True)
    ):
        symmetric = [before for before, _ in crop]
        return torch.convolution(x, weight, bias, stride, symmetric, dilation, True, extra, group)
    y = torch.convolution(x, weight, None, stride, [0] * rank, dilation, True, [0] * rank, group)
    trim = [(-before, more - after) for (before, after), more in zip(crop, extra, strict=True)]
    y = F.pad(y, [amount for pair in reversed(trim) for amount in pair])
    return y if bias is None else y + bias.reshape(-1, *[1] * rank)


@operator("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    /,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    a = a.t() if transA else a
    if alpha == 1 and (c is None or (beta == 1 and c.dim() == 1 and c.shape[0] == b.shape[0 if transB else 1])):
        return F.linear(a, b if transB else b.t(), c)
    product = a @ (b.t() if transB else b)
    product = product if alpha == 1 else product * alpha
    return product if c is None else product + (c if beta == 1 else c * beta)


@operator("MatMul")
def matmul(a: Tensor, b: Tensor, /) -> Tensor:
    return torch.matmul(a, b)


@operator("Einsum")
def einsum(*tensors: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation, *tensors)


@operator("MaxPool")
def max_pool(
    x: Tensor,
    /,
    *,
    kernel_shape: list[int],
    auto_pad: AutoPad = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints = None,
    pads: Ints = None,
    storage_order: Literal[0] = 0,
    strides: Ints = None,
    results: int,
) -> Tensor:
    if results > 1:
        raise UnsupportedAttribute("the second result (indices) is not supported")
    rank = len(kernel_shape)
    stride, dilation = strides or [1] * rank, dilations or [1] * rank
    padding = window_padding(x.shape[2:], kernel_shape, stride, dilation, pads, auto_pad)
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    x, inside = pad_outside(x, padding, kernel_shape, lowest)
    pool: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    result: Tensor = pool(x, kernel_shape, stride, inside, dilation, bool(ceil_mode))
    return result


@operator("AveragePool")
def average_pool(
    x: Tensor,
    /,
    *,
    kernel_shape: list[int],
    auto_pad: AutoPad = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Tensor:
    rank = len(kernel_shape)
    if any(spread != 1 for spread in dilations or ()):
        raise UnsupportedAttribute(f"attribute 'dilations' is {dilations}; legal: all 1")
    stride = strides or [1] * rank
    padding = window_padding(x.shape[2:], kernel_shape, stride, [1] * rank, pads, auto_pad)
    pool: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    padded, inside = pad_outside(x, padding, kernel_shape, 0.0)
    sums: Tensor = pool(
        padded, kernel_shape, stride, inside, bool(ceil_mode), bool(count_include_pad) or padded is not x
    )
    if padded is x or count_include_pad:
        return sums
    ones, _ = pad_outside(torch.ones([1, 1, *x.shape[2:]], dtype=x.dtype), padding, kernel_shape, 0.0)
    covered: Tensor = pool(ones, kernel_shape, stride, 0, bool(ceil_mode), True)
    return sums / covered


@operator("GlobalAveragePool")
def global_average_pool(x: Tensor, /) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Tensor, /) -> Tensor:
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


@operator("BatchNormalization")
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    /,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: Literal[1] = 1,
    training_mode: Literal[0] = 0,
) -> Tensor:
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


@operator("LayerNormalization")
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    /,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: Literal[1] = 1,
    results: int,
) -> Tensor:
    if results > 1:
        raise UnsupportedAttribute("the second and third result (mean, deviation) are not supported")
    return F.layer_norm(x, x.shape[axis % x.dim() :], scale, bias, epsilon)


@operator("RMSNormalization")
def rms_normalization(
    x: Tensor, scale: Tensor, /, *, axis: int = -1, epsilon: float = 1e-5, stash_type: Literal[1] = 1
) -> Tensor:
    mean_square = x.pow(2).mean(tuple(range(axis % x.dim(), x.dim())), keepdim=True)
    return x * torch.rsqrt(mean_square + epsilon) * scale


@operator("GroupNormalization")
def group_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    /,
    *,
    epsilon: float = 1e-5,
    num_groups: int,
    stash_type: Literal[1] = 1,
) -> Tensor:
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@operator("InstanceNormalization")
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, /, *, epsilon: float = 1e-5) -> Tensor:
    return F.group_norm(x, scale.shape[0], scale, bias, epsilon)


@operator("LpNormalization")
def lp_normalization(x: Tensor, /, *, axis: int = -1, p: int = 2) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / norm


@operator("LRN")
def local_response_normalization(
    x: Tensor, /, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int
) -> Tensor:
    if size % 2 == 0:
        raise UnsupportedAttribute(f"attribute 'size' is {size}; legal: odd sizes")
    return F.local_response_norm(x, size, alpha, beta, bias)


def _flattened(function: Any, x: Tensor, axis: int | None, opset: int) -> Tensor:
    """Before operator set 13 softmax ran over all dimensions from `axis` on, and `axis` was 1 by default."""
    axis = axis if axis is not None else (1 if opset < 13 else -1)
    if opset >= 13 or axis in (-1, x.dim() - 1):
        result: Tensor = function(x, axis)
        return result
    flat: Tensor = function(x.flatten(axis), -1)
    return flat.reshape(x.shape)


@operator("Softmax")
def softmax(x: Tensor, /, *, axis: int | None = None, opset: int) -> Tensor:
    return _flattened(torch.softmax, x, axis, opset)


@operator("LogSoftmax")
def log_softmax(x: Tensor, /, *, axis: int | None = None, opset: int) -> Tensor:
    return _flattened(torch.log_softmax, x, axis, opset)
