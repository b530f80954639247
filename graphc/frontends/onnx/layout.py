"""ONNX operators that move values: reshape, slice, concatenate, pad; each over torch tensors."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import onnx
import torch
from torch import Tensor

from graphc.frontends.onnx.operator import Known, Operand, UnsupportedAttribute, Value, axes_of, operator

TORCH_DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.BOOL: torch.bool,
}


def torch_dtype(code: int) -> torch.dtype:
    """The torch dtype of an ONNX element type."""
    if code not in TORCH_DTYPES:
        raise UnsupportedAttribute(f"element type {onnx.TensorProto.DataType.Name(code)} is not supported")
    return TORCH_DTYPES[code]


@operator("Identity", "Dropout")
def identity(
    x: Value, ratio: Value | None = None, training: Known | None = None, /, *, seed: int = 0, results: int
) -> Any:
    if training is not None and bool(training):
        raise UnsupportedAttribute("training mode is not supported")
    return x if results == 1 or not isinstance(x, Tensor) else (x, torch.ones_like(x, dtype=torch.bool))


@operator("Cast")
def cast(x: Tensor, /, *, to: int, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return x.to(torch_dtype(to))


@operator("CastLike")
def cast_like(x: Tensor, like: Tensor, /, *, saturate: int = 1, round_mode: str = "up") -> Tensor:
    return x.to(like.dtype)


@operator("Reshape")
def reshape(x: Tensor, shape: Known, /, *, allowzero: int = 0) -> Tensor:
    sizes = shape.tolist()
    if not allowzero:
        sizes = [x.shape[axis] if isinstance(size, int) and size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


@operator("Flatten")
def flatten(x: Tensor, /, *, axis: int = 1) -> Tensor:
    axis = axis if axis >= 0 else axis + x.dim()
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("Transpose")
def transpose(x: Tensor, /, *, perm: list[int] | None = None) -> Tensor:
    return x.permute(list(reversed(range(x.dim()))) if perm is None else perm)


@operator("Unsqueeze")
def unsqueeze(x: Tensor, axes_input: Known | None = None, /, *, axes: list[int] | None = None) -> Tensor:
    chosen = axes_of(axes_input, axes) or []
    for axis in sorted(axis % (x.dim() + len(chosen)) for axis in chosen):
        x = x.unsqueeze(axis)
    return x


@operator("Squeeze")
def squeeze(x: Tensor, axes_input: Known | None = None, /, *, axes: list[int] | None = None) -> Tensor:
    chosen = axes_of(axes_input, axes)
    return x.squeeze() if chosen is None else x.squeeze(tuple(chosen))


@operator("Expand")
def expand(x: Tensor, shape: Known, /) -> Tensor:
    sizes = shape.tolist()
    aligned = [1] * (len(sizes) - x.dim()) + list(x.shape)
    offset = len(aligned) - len(sizes)
    # A size of one in the target keeps the tensor's own.
    return x.expand(
        [own if i < offset or sizes[i - offset] == 1 else sizes[i - offset] for i, own in enumerate(aligned)]
    )


@operator("Tile")
def tile(x: Tensor, repeats: Known, /) -> Tensor:
    return x.repeat(repeats.tolist())


@operator("Concat")
def concat(*parts: Tensor, axis: int) -> Tensor:
    return torch.cat(parts, axis)


@operator("Split")
def split(
    x: Tensor,
    sizes: Known | None = None,
    /,
    *,
    axis: int = 0,
    split: list[int] | None = None,
    num_outputs: int | None = None,
    results: int,
) -> tuple[Tensor, ...]:
    parts: Any = sizes.tolist() if sizes is not None else split or -(-x.shape[axis] // results)
    return torch.split(x, parts, axis)


@operator("SplitToSequence")
def split_to_sequence(x: Tensor, sizes: Known | None = None, /, *, axis: int = 0, keepdims: int = 1) -> list[Tensor]:
    if sizes is None:
        parts = list(torch.split(x, 1, axis))
        return parts if keepdims else [part.squeeze(axis) for part in parts]
    return list(torch.split(x, sizes.tolist(), axis))


@operator("SequenceConstruct")
def sequence(*parts: Tensor) -> list[Tensor]:
    return list(parts)


@operator("SequenceAt")
def sequence_item(parts: Value, position: Known, /) -> Tensor:
    return parts[int(position)]


@operator("ConcatFromSequence")
def concat_from_sequence(parts: Value, /, *, axis: int, new_axis: int = 0) -> Tensor:
    return torch.stack(list(parts), axis) if new_axis else torch.cat(list(parts), axis)


@operator("Slice")
def slice_tensor(
    x: Tensor,
    starts_input: Known | None = None,
    ends_input: Known | None = None,
    axes_input: Known | None = None,
    steps: Known | None = None,
    /,
    *,
    starts: list[int] | None = None,
    ends: list[int] | None = None,
    axes: list[int] | None = None,
) -> Tensor:
    begin = starts if starts_input is None else starts_input.tolist()
    end = ends if ends_input is None else ends_input.tolist()
    along = axes_of(axes_input, axes)
    assert begin is not None and end is not None  # the checker has seen to one form or the other
    for position, (first, last) in enumerate(zip(begin, end, strict=True)):
        axis = position if along is None else along[position]
        step = 1 if steps is None else steps[position].item()
        if step < 0:  # the same window of the flipped tensor, walked forwards
            size = x.shape[axis]
            first, last = (value + size if value < 0 else value for value in (first, last))
            first, last = size - 1 - min(first, size - 1), size - 1 - max(last, -1)
            x, step = x.flip(axis), -step
        x = torch.ops.aten.slice.Tensor(x, axis, first, last, step)
    return x


@operator("Pad")
def pad(
    x: Tensor,
    pads_input: Known | None = None,
    fill: Known | None = None,
    axes: Known | None = None,
    /,
    *,
    mode: Literal["constant", "reflect", "edge", "wrap"] = "constant",
    pads: list[int] | None = None,
    value: float = 0.0,
) -> Tensor:
    amounts = pads if pads_input is None else pads_input.tolist()
    assert amounts is not None  # the checker has seen to one form or the other
    along = list(range(x.dim())) if axes is None else [int(axis) % x.dim() for axis in axes]
    half = len(amounts) // 2
    before, after = dict(zip(along, amounts[:half], strict=True)), dict(zip(along, amounts[half:], strict=True))
    if mode == "constant":
        flat = [amount for axis in reversed(range(x.dim())) for amount in (before.get(axis, 0), after.get(axis, 0))]
        while flat and isinstance(flat[-1], int) and not flat[-1] and not flat[-2]:
            flat = flat[:-2]
        return torch.constant_pad_nd(x, flat, value if fill is None else fill.item()) if flat else x
    for axis in along:
        begin, end = int(before[axis]), int(after[axis])
        if begin or end:
            positions = np.pad(np.arange(int(x.shape[axis])), (max(begin, 0), max(end, 0)), mode)
            x = x.index_select(axis, torch.tensor(positions[max(-begin, 0) : len(positions) - max(-end, 0)].tolist()))
    return x


@operator("DepthToSpace")
def depth_to_space(x: Tensor, /, *, blocksize: int, mode: Literal["DCR", "CRD"] = "DCR") -> Tensor:
    if mode == "CRD":
        return torch.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    blocks = x.reshape(n, blocksize, blocksize, c // blocksize**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return blocks.reshape(n, c // blocksize**2, h * blocksize, w * blocksize)


@operator("SpaceToDepth")
def space_to_depth(x: Tensor, /, *, blocksize: int) -> Tensor:
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // blocksize, blocksize, w // blocksize, blocksize).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, c * blocksize**2, h // blocksize, w // blocksize)


@operator("Trilu")
def trilu(x: Tensor, k: Known | None = None, /, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else int(k)
    return x.triu(diagonal) if upper else x.tril(diagonal)


@operator("ConstantOfShape")
def constant_of_shape(shape: Known, /, *, value: Known | None = None) -> Tensor:
    value = np.zeros(1, np.float32) if value is None else value
    return torch.full(shape.tolist(), value.item(), dtype=torch.from_numpy(value).dtype)


@operator("Range")
def arange(start: Known, limit: Known, delta: Known, /) -> Tensor:
    dtype = torch.from_numpy(start.reshape(1)).dtype if start.dtype != object else torch.int64
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=dtype)


@operator("EyeLike")
def eye_like(x: Tensor, /, *, dtype: int | None = None, k: int = 0) -> Tensor:
    kind = x.dtype if dtype is None else torch_dtype(dtype)
    rows, columns = torch.arange(x.shape[0]).unsqueeze(1), torch.arange(x.shape[1])
    return (columns - rows == k).to(kind)


@operator("Where")
def where(condition: Tensor, x: Tensor, y: Operand, /) -> Tensor:
    return torch.where(condition, x, y)
