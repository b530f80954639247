"""ONNX operators on quantized tensors: they come in as graphc::quantize, graphc::dequantize and integer products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import graphc.operators  # noqa: F401  (registers torch.ops.graphc)
from graphc.frontends.onnx.layers import AutoPad, Ints, convolution, window_padding
from graphc.frontends.onnx.layout import torch_dtype
from graphc.frontends.onnx.operator import Known, UnsupportedAttribute, operator

_RANGES = {torch.int8: (-128, 127), torch.uint8: (0, 255)}


def _parameters(scale: Tensor, zero: Tensor | None, axis: int) -> tuple[Tensor, Tensor, int | None]:
    """Scale f32 and zero point i32 as graphc takes them: [] for the whole tensor (axis None), or [C]."""
    if scale.dtype != torch.float32:
        raise UnsupportedAttribute(f"scale is {scale.dtype}; legal: float32")
    zero = torch.zeros_like(scale, dtype=torch.int32) if zero is None else zero.to(torch.int32)
    if scale.dim() > 1:
        raise UnsupportedAttribute("scales for blocks are not supported; legal: per tensor or per channel")
    return (scale, zero, axis) if scale.numel() > 1 else (scale.reshape([]), zero.reshape([]), None)


def _quantize(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int, dtype: torch.dtype) -> Tensor:
    if dtype not in _RANGES:
        raise UnsupportedAttribute(f"quantization to {dtype} is not supported; legal: int8, uint8")
    result: Tensor = torch.ops.graphc.quantize(x, *_parameters(scale, zero, axis % max(x.dim(), 1)), *_RANGES[dtype])
    return result


def _dequantize(x: Tensor, scale: Tensor, zero: Tensor | None, axis: int = 1) -> Tensor:
    result: Tensor = torch.ops.graphc.dequantize(x, *_parameters(scale, zero, axis % max(x.dim(), 1)))
    return result


@operator("QuantizeLinear")
def quantize_linear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    /,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
) -> Tensor:
    dtype = zero.dtype if zero is not None else torch_dtype(output_dtype) if output_dtype else torch.uint8
    return _quantize(x, scale, zero, axis, dtype)


@operator("DequantizeLinear")
def dequantize_linear(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    /,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    axis = axis % max(x.dim(), 1)
    if not block_size:
        return _dequantize(x, scale, zero, axis)
    # One scale for `block_size` elements along `axis`: each block becomes a channel of its own.
    moved = x.movedim(axis, -1)
    rows = moved.reshape(-1, block_size)
    scales, zeros = (None if v is None else v.movedim(axis, -1).reshape(-1) for v in (scale, zero))
    if rows.shape[0] * block_size != moved.numel() or scales is None or rows.shape[0] != scales.numel():
        raise UnsupportedAttribute(f"attribute 'block_size' is {block_size}; legal: a divisor of the dimension")
    return _dequantize(rows, scales, zeros, 0).reshape(moved.shape).movedim(-1, axis)


@operator("DynamicQuantizeLinear")
def dynamic_quantize_linear(x: Tensor, /) -> tuple[Tensor, Tensor, Tensor]:
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    zero = torch.round(-low / scale).clamp(0, 255).to(torch.uint8)
    return _quantize(x, scale, zero, 0, torch.uint8), scale, zero


@operator("QLinearConv")
def quantized_convolution(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor,
    scale: Tensor,
    zero: Tensor,
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
    y = convolution(
        _dequantize(x, x_scale, x_zero),
        _dequantize(weight, weight_scale, weight_zero, 0),
        None if bias is None else _dequantize(bias, x_scale * weight_scale, None, 0),
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    return _quantize(y, scale, zero, 1, zero.dtype)


@operator("QLinearMatMul")
def quantized_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    scale: Tensor,
    zero: Tensor,
    /,
) -> Tensor:
    product = _dequantize(a, a_scale, a_zero, -2) @ _dequantize(b, b_scale, b_zero, -1)
    return _quantize(product, scale, zero, -1, zero.dtype)


def _signed(weight: Tensor, zero: Known | None) -> Tensor:
    """A weight less its zero point as int8, which integer products take."""
    point = 0 if zero is None else int(zero.reshape(-1)[0])
    if (zero is not None and (zero != point).any()) or point != (128 if weight.dtype == torch.uint8 else 0):
        raise UnsupportedAttribute("zero point of the weight must be 0 for int8 and 128 for uint8")
    return weight if weight.dtype == torch.int8 else (weight.to(torch.int16) - 128).to(torch.int8)


def _zero(zero: Known | None) -> int:
    if zero is not None and zero.size != 1:
        raise UnsupportedAttribute("the input's zero point must be one number")
    return 0 if zero is None else int(zero.item())


@operator("ConvInteger")
def integer_convolution(
    x: Tensor,
    weight: Tensor,
    x_zero: Known | None = None,
    weight_zero: Known | None = None,
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
        x = F.pad(x, [amount for pair in reversed(padding) for amount in pair], value=_zero(x_zero))
        padding = [(0, 0)] * rank
    result: Tensor = torch.ops.graphc.integer_convolution(
        x, _signed(weight, weight_zero), None, _zero(x_zero), stride, [before for before, _ in padding], dilation, group
    )
    return result


@operator("MatMulInteger")
def integer_matmul(a: Tensor, b: Tensor, a_zero: Known | None = None, b_zero: Known | None = None, /) -> Tensor:
    if b.dim() != 2:
        raise UnsupportedAttribute("the second factor must be a matrix")
    result: Tensor = torch.ops.graphc.integer_linear(a, _signed(b, b_zero).t(), None, _zero(a_zero))
    return result


# -- graphc's own operators, as graphc.exporters.onnx writes them ------------------------------------


@operator("graphc::rescale")
def rescale(
    x: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    /,
    *,
    channels: list[int],
    input_zero: int,
    output_zero: int,
    qmin: int,
    qmax: int,
    to: int,
) -> Tensor:
    axis = channels.index(-1) if -1 in channels else None
    result: Tensor = torch.ops.graphc.rescale(x, multiplier, shift, input_zero, output_zero, axis, qmin, qmax)
    return result


@operator("graphc::integer_convolution")
def own_integer_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    /,
    *,
    x_zero: int,
    lift: int,
    channels: list[int],
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    group: int,
) -> Tensor:
    padding = pads[: len(strides)]
    result: Tensor = torch.ops.graphc.integer_convolution(x, weight, bias, x_zero, strides, padding, dilations, group)
    return result


@operator("graphc::integer_linear")
def integer_linear(x: Tensor, weight: Tensor, bias: Tensor, /, *, x_zero: int, lift: int) -> Tensor:
    result: Tensor = torch.ops.graphc.integer_linear(x, weight, bias, x_zero)
    return result


@operator("graphc::integer_sum_pool2d")
def integer_sum_pool2d(
    x: Tensor, ones: Tensor, /, *, x_zero: int, lift: int, strides: list[int], pads: list[int], group: int
) -> Tensor:
    result: Tensor = torch.ops.graphc.integer_sum_pool2d(x, x_zero, list(ones.shape[2:]), strides, pads[:2])
    return result
