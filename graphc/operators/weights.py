"""Decoding of compressed weights, and the quantization of activations that meet them: integers in groups with scales.

A compressed weight is an expression of these over stored tensors, so that torch knows what it means; a backend whose
kernel reads the stored form never computes the dense one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("graphc::unpack", mutates_args=())
def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """Unsigned integers of 1 to 8 bits, one after the other along the last dimension, the lowest bits first.

    packed: uint8 [..., ceil(count * bits / 8)]. Returns uint8 [..., count].
    """
    first = torch.arange(count) * bits
    low = packed[..., first // 8].to(torch.int32)
    high = packed[..., (first // 8 + 1).clamp(max=packed.shape[-1] - 1)].to(torch.int32)
    return (((low | high << 8) >> (first % 8).to(torch.int32)) & ((1 << bits) - 1)).to(torch.uint8)


@unpack.register_fake
def _(packed: Tensor, bits: int, count: int) -> Tensor:
    torch._check(1 <= bits <= 8, lambda: f"bits={bits} is none of 1 to 8")
    torch._check(
        packed.shape[-1] == -(-count * bits // 8),
        lambda: f"{count} numbers of {bits} bits take {-(-count * bits // 8)} bytes, not {packed.shape[-1]}",
    )
    return packed.new_empty([*packed.shape[:-1], count])


def pack(codes: Tensor, bits: int) -> Tensor:
    """The inverse of `unpack`: codes below 2^bits, uint8 [..., count] -> uint8 [..., ceil(count * bits / 8)]."""
    stream = (codes.unsqueeze(-1) >> torch.arange(bits, dtype=torch.uint8) & 1).flatten(-2)
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[-1] % 8)).unflatten(-1, (-1, 8))
    packed: Tensor = (stream << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    return packed


@torch.library.custom_op("graphc::dequantize_groups", mutates_args=())
def dequantize_groups(q: Tensor, scale: Tensor, zero_point: Tensor | None, group: int) -> Tensor:
    """(q - zero_point) * scale, where `group` neighbours along the last dimension share a scale and a zero point.

    q: int8 or uint8 [..., K]. scale: f16 or f32, broadcasts to [..., K / group]. zero_point: int8 or uint8, broadcasts
    to the same, or None for nought. Returns f32 [..., K].
    """
    decoded: Tensor = _steps(q, zero_point, group) * scale.to(torch.float32).unsqueeze(-1)
    return decoded.flatten(-2)


def _steps(q: Tensor, zero_point: Tensor | None, group: int) -> Tensor:
    """q - zero_point, f32 [..., K / group, group]."""
    steps = q.to(torch.int32).unflatten(-1, (-1, group))
    if zero_point is not None:
        steps = steps - zero_point.to(torch.int32).unsqueeze(-1)
    result: Tensor = steps.to(torch.float32)
    return result


@dequantize_groups.register_fake
def _(q: Tensor, scale: Tensor, zero_point: Tensor | None, group: int) -> Tensor:
    torch._check(q.shape[-1] % group == 0, lambda: f"groups of {group} do not divide the last dimension, {q.shape[-1]}")
    groups = [*q.shape[:-1], q.shape[-1] // group]
    for parameter in (scale, zero_point):
        if parameter is not None:
            parameter.expand(groups)  # raises where it does not broadcast
    return q.new_empty(q.shape, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, int], output: Tensor) -> None:
    q, scale, zero_point, ctx.group = inputs
    ctx.save_for_backward(q, scale, zero_point)


def _gradient(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
    q, scale, zero_point = ctx.saved_tensors
    felt = gradient.unflatten(-1, (-1, ctx.group)) * _steps(q, zero_point, ctx.group)
    return None, felt.sum(-1).sum_to_size(scale.shape).to(scale.dtype), None, None


dequantize_groups.register_autograd(_gradient, setup_context=_keep)


@torch.library.custom_op("graphc::quantize_dynamic", mutates_args=())
def quantize_dynamic(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """int8 with a scale for each `group` neighbours along the last dimension, found from the values themselves.

    scale = max|x| / 127 over the group, 1 where that is nought; q = round_half_even(x / scale). x: f32 [..., K].
    Returns q, int8 [..., K], and scale, f32 [..., K / group].
    """
    grouped = x.unflatten(-1, (-1, group))
    scale = grouped.abs().amax(-1) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    return torch.round(grouped / scale.unsqueeze(-1)).to(torch.int8).flatten(-2), scale


@quantize_dynamic.register_fake
def _(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    torch._check(x.shape[-1] % group == 0, lambda: f"groups of {group} do not divide the last dimension, {x.shape[-1]}")
    scale = x.new_empty([*x.shape[:-1], x.shape[-1] // group])
    return x.new_empty(x.shape, dtype=torch.int8), scale
