"""Between real numbers and integers: quantize, dequantize, rescale.

The integer arithmetic of graphc is defined here, once: every backend answers to it bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor


def integer_dtype(qmin: int, qmax: int) -> torch.dtype:
    """The narrowest storage for integers in [qmin, qmax]: int8, uint8, else int32."""
    if qmin >= -128 and qmax <= 127:
        return torch.int8
    return torch.uint8 if qmin >= 0 and qmax <= 255 else torch.int32


def along(parameter: Tensor, axis: int | None, rank: int) -> Tensor:
    """A per-channel parameter [C] shaped to broadcast along `axis` of a value of `rank` dimensions."""
    if axis is None:
        return parameter
    shape = [1] * rank
    shape[axis] = -1
    return parameter.reshape(shape)


@torch.library.custom_op("graphc::quantize", mutates_args=())
def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, qmin: int, qmax: int) -> Tensor:
    """q = clamp(round_half_even(x / scale) + zero_point, qmin, qmax).

    x: f32, any shape. scale: f32, [] or [C] along `axis`. zero_point: i32, the same shape.
    Returns int8, uint8 or int32, the narrowest that holds [qmin, qmax]. The division is IEEE's, as in ONNX's
    QuantizeLinear; NaN becomes qmin.
    """
    steps = torch.round(x / along(scale, axis, x.dim())).nan_to_num(nan=-torch.inf)
    zero = along(zero_point, axis, x.dim())
    dtype = integer_dtype(qmin, qmax)
    # Clamped before the conversion, so that no float lies outside the integer's range.
    wide, bound = (torch.int64, 2.0**40) if dtype == torch.int32 else (torch.int32, 2.0**30)
    return (steps.clamp(-bound, bound).to(wide) + zero).clamp(qmin, qmax).to(dtype)


@quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, qmin: int, qmax: int) -> Tensor:
    return x.new_empty(x.shape, dtype=integer_dtype(qmin, qmax))


@torch.library.custom_op("graphc::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    """x = (q - zero_point) * scale: the decoding of the `linear` format, and of quantized activations.

    q: int8, uint8 or int32. scale: f32, [] or [C] along `axis`. zero_point: i32, the same shape. Returns f32.
    """
    zero = along(zero_point, axis, q.dim())
    return (q.to(torch.int32) - zero).to(torch.float32) * along(scale, axis, q.dim())


@dequantize.register_fake
def _(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    return q.new_empty(q.shape, dtype=torch.float32)


@torch.library.custom_op("graphc::rescale", mutates_args=())
def rescale(
    x: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    input_zero: int,
    output_zero: int,
    axis: int | None,
    qmin: int,
    qmax: int,
) -> Tensor:
    """y = clamp(output_zero + (((x - input_zero) * multiplier + 2^(shift-1)) >> shift), qmin, qmax), in int64.

    Multiplication by the real number multiplier / 2^shift, rounded half up: TOSA's RESCALE with single rounding.
    x: int8, uint8 or int32. multiplier: i32 in [2^30, 2^31), [] or [C] along `axis`. shift: i32 in [2, 62].
    Returns int8, uint8 or int32, the narrowest that holds [qmin, qmax].
    """
    places = along(shift, axis, x.dim()).to(torch.int64)
    product = (x.to(torch.int64) - input_zero) * along(multiplier, axis, x.dim()).to(torch.int64)
    rounded = (product + (torch.ones_like(places) << (places - 1))) >> places
    return (rounded + output_zero).clamp(qmin, qmax).to(integer_dtype(qmin, qmax))


@rescale.register_fake
def _(
    x: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    input_zero: int,
    output_zero: int,
    axis: int | None,
    qmin: int,
    qmax: int,
) -> Tensor:
    return x.new_empty(x.shape, dtype=integer_dtype(qmin, qmax))


def multiplier_and_shift(factor: Tensor) -> tuple[Tensor, Tensor]:
    """The (multiplier, shift) of `rescale` for positive real factors, rounded to 24 significant bits.

    factor: f64, any shape, in [2^-32, 2^29). Returns two i32 tensors of that shape, with a relative error of at most
    2^-23. So multiplier / 2^shift is a float32; and unless 24 bits are enough for the factor, the last of them is 1, so
    that products lie nowhere halfway between integers. That lets a fused multiply-add compute a rescale exactly.
    """
    mantissa, exponent = torch.frexp(factor.to(torch.float64))
    bits = mantissa * 2.0**24
    nearest = torch.round(bits)
    steps = torch.where((bits - nearest).abs() < 2.0**-16, nearest, 2 * torch.floor(bits / 2) + 1).to(torch.int64)
    carried = steps == 2**24  # a mantissa that rounds up to 1
    multiplier = torch.where(carried, steps // 2, steps) << 7
    shift = 31 - exponent.to(torch.int64) - carried.to(torch.int64)
    # Below that range 30 bits times the factor round to nought, above it any integer but nought grows beyond 28 bits,
    # past every 8-bit bound: the largest and the smallest shift say just that.
    return multiplier.to(torch.int32), shift.clamp(2, 62).to(torch.int32)
