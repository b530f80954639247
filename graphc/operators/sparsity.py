"""Sparse weights: dense tensors from the elements or blocks that are kept."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("graphc::expand_2_4", mutates_args=())
def expand_2_4(values: Tensor, positions: Tensor) -> Tensor:
    """Two of every four elements, the others nought (Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021).

    values: f16 or f32 [..., K / 2]; positions: uint8 of the same shape, each element's place among its four: 0 to 3,
    different for the two of one group. Returns f32 [..., K].
    """
    pairs = values.to(torch.float32).unflatten(-1, (-1, 2))
    dense = pairs.new_zeros([*pairs.shape[:-1], 4])
    expanded: Tensor = dense.scatter(-1, _places(positions), pairs).flatten(-2)
    return expanded


def _places(positions: Tensor) -> Tensor:
    places: Tensor = positions.unflatten(-1, (-1, 2)).to(torch.int64)
    return places


@expand_2_4.register_fake
def _(values: Tensor, positions: Tensor) -> Tensor:
    return values.new_empty([*values.shape[:-1], values.shape[-1] * 2], dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """For a gradient: where the values, whose type it has, lie."""
    ctx.dtype = inputs[0].dtype
    ctx.save_for_backward(inputs[1])


def _gradient_2_4(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    (positions,) = ctx.saved_tensors
    kept = gradient.unflatten(-1, (-1, 4)).gather(-1, _places(positions))
    return kept.flatten(-2).to(ctx.dtype), None


expand_2_4.register_autograd(_gradient_2_4, setup_context=_keep)


@torch.library.custom_op("graphc::expand_blocks", mutates_args=())
def expand_blocks(values: Tensor, mask: Tensor) -> Tensor:
    """A matrix of blocks, of which those that `mask` keeps have values and the others are nought.

    values: f16 or f32 [kept, height, width], in row-major order of the blocks. mask: uint8 [rows, columns] of 0 and 1,
    with as many ones. Returns f32 [rows * height, columns * width].
    """
    _, height, width = values.shape
    dense = torch.zeros([*mask.shape, height, width])
    dense[mask.to(torch.bool)] = values.to(torch.float32)
    return dense.transpose(1, 2).reshape(mask.shape[0] * height, mask.shape[1] * width)


@expand_blocks.register_fake
def _(values: Tensor, mask: Tensor) -> Tensor:
    shape = [mask.shape[0] * values.shape[1], mask.shape[1] * values.shape[2]]
    return values.new_empty(shape, dtype=torch.float32)


def _gradient_blocks(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    (mask,) = ctx.saved_tensors
    rows, columns = mask.shape
    blocks = gradient.unflatten(1, (columns, -1)).unflatten(0, (rows, -1)).transpose(1, 2)
    return blocks[mask.to(torch.bool)].to(ctx.dtype), None


expand_blocks.register_autograd(_gradient_blocks, setup_context=_keep)


@torch.library.custom_op("graphc::expand_gaps", mutates_args=())
def expand_gaps(values: Tensor, gaps: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix of the values that are kept, row by row, each with the number of noughts before it.

    values: f16 or f32 [kept]. gaps: uint8 [kept], since the value before or the start; value i lies at element
    (gaps[0] + 1) + ... + (gaps[i] + 1) - 1 of the matrix. Returns f32 [rows, columns].
    """
    dense = torch.zeros(rows * columns)
    dense[_filled(gaps)] = values.to(torch.float32)
    return dense.reshape(rows, columns)


def _filled(gaps: Tensor) -> Tensor:
    return (gaps.to(torch.int64) + 1).cumsum(0) - 1


@expand_gaps.register_fake
def _(values: Tensor, gaps: Tensor, rows: int, columns: int) -> Tensor:
    torch._check(values.shape == gaps.shape, lambda: f"{values.shape[0]} values for {gaps.shape[0]} gaps")
    return values.new_empty([rows, columns], dtype=torch.float32)


def _gradient_gaps(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    (gaps,) = ctx.saved_tensors
    return gradient.flatten()[_filled(gaps)].to(ctx.dtype), None, None, None


expand_gaps.register_autograd(_gradient_gaps, setup_context=_keep)
