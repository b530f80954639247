"""Arithmetic on values known while tracing: shapes, axes, scales. Sizes may be symbols (torch.SymInt) in object arrays.

Exporters compute shapes with ordinary operators (Shape, Gather, Concat, Reshape). Here they stay sizes: dynamic ones
remain symbols, and constants never enter the graph. A function that returns NotImplemented leaves its node to the
operators over tensors.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch

from graphc.frontends.onnx.operator import Known, Value, axes_of, known, known_operator, operator


@operator("Shape")
def shape(x: Value, /, *, start: int = 0, end: int | None = None) -> Known:
    return known(list(x.shape)[start:end])


@operator("Size")
def size(x: Value, /) -> Known:
    return known(x.numel() if isinstance(x, torch.Tensor) else x.size)


@known_operator("Identity")
def identity(x: Known, /) -> Known:
    return x


@known_operator("Cast")
def cast(x: Known, /, *, to: int, saturate: int = 1, round_mode: str = "up") -> Known:
    if x.dtype != object:
        return x.astype(onnx.helper.tensor_dtype_to_np_dtype(to))
    if to in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        return _each(torch.sym_float, x)
    return _each(torch.sym_int, x)


@known_operator("Gather")
def gather(x: Known, indices: Known, /, *, axis: int = 0) -> Known:
    return np.asarray(np.take(x, indices.astype(np.int64), axis))


@known_operator("Slice")
def slice_known(
    x: Known, starts: Known, ends: Known, axes: Known | None = None, steps: Known | None = None, /
) -> Known:
    window = [slice(None)] * x.ndim
    for position, start in enumerate(starts):
        axis = position if axes is None else int(axes[position])
        step = 1 if steps is None else int(steps[position])
        end = int(ends[position])
        window[axis] = slice(int(start), None if step < 0 and end < -x.shape[axis] else end, step)
    return x[tuple(window)]


@known_operator("Concat")
def concat(*parts: Known, axis: int) -> Known:
    return np.concatenate(parts, axis)


@known_operator("Split")
def split(
    x: Known,
    sizes: Known | None = None,
    /,
    *,
    axis: int = 0,
    split: list[int] | None = None,
    num_outputs: int | None = None,
    results: int,
) -> tuple[Known, ...]:
    if sizes is None and split is None:
        return tuple(np.array_split(x, results, axis))
    return tuple(np.split(x, np.cumsum(np.asarray(split if sizes is None else sizes))[:-1], axis))


@known_operator("Unsqueeze")
def unsqueeze(x: Known, axes_input: Known | None = None, /, *, axes: list[int] | None = None) -> Known:
    return np.expand_dims(x, tuple(axes_of(axes_input, axes) or ()))


@known_operator("Squeeze")
def squeeze(x: Known, axes_input: Known | None = None, /, *, axes: list[int] | None = None) -> Known:
    chosen = axes_of(axes_input, axes)
    return np.squeeze(x, None if chosen is None else tuple(chosen))


@known_operator("Reshape")
def reshape(x: Known, shape: Known, /, *, allowzero: int = 0) -> Known:
    sizes = [x.shape[axis] if size == 0 and not allowzero else int(size) for axis, size in enumerate(shape)]
    return x.reshape(sizes)


@known_operator("Transpose")
def transpose(x: Known, /, *, perm: list[int] | None = None) -> Known:
    return x.transpose(perm)


@known_operator("Expand")
def expand(x: Known, shape: Known, /) -> Known:
    if shape.dtype == object:
        return NotImplemented  # type: ignore[no-any-return]
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(size) for size in shape)))


@known_operator("ConstantOfShape")
def constant_of_shape(shape: Known, /, *, value: Known | None = None) -> Known:
    if shape.size > 1 or shape.dtype == object or value is None or value.dtype != np.int64:
        return NotImplemented  # type: ignore[no-any-return]  # a tensor, not a shape under construction
    return np.full(tuple(shape), value.item())


@known_operator("Where")
def where(condition: Known, x: Known, y: Known, /) -> Known:
    return np.where(condition.astype(bool), x, y)


@known_operator("Range")
def arange(start: Known, limit: Known, delta: Known, /) -> Known:
    if object in (start.dtype, limit.dtype, delta.dtype):
        return NotImplemented  # type: ignore[no-any-return]
    return np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


@known_operator("ReduceProd")
def product(x: Known, axes_input: Known | None = None, /, *, axes: list[int] | None = None, keepdims: int = 1) -> Known:
    chosen = axes_of(axes_input, axes)
    return np.asarray(np.prod(x, None if chosen is None else tuple(chosen), keepdims=bool(keepdims)), dtype=x.dtype)


@known_operator("Div")
def divide(a: Known, b: Known, /) -> Known:
    if a.dtype == object or b.dtype == object:  # sizes are not negative: flooring is ONNX's truncation
        floats = any(isinstance(item, float | torch.SymFloat) for item in [*a.flat, *b.flat])
        return np.asarray(a / b if floats else a // b, dtype=object)
    if not np.issubdtype(a.dtype, np.integer):
        return np.asarray(a / b)
    return np.asarray(np.sign(a) * np.sign(b) * (abs(a) // abs(b)), dtype=a.dtype)


@known_operator("Floor")
def floor(x: Known, /) -> Known:
    return np.asarray(np.floor(x)) if x.dtype != object else _each(torch.sym_int, x)


def _enter_arithmetic() -> None:
    def binary(function: Any) -> Any:
        def apply(a: Known, b: Known, /) -> Known:
            return np.asarray(function(a, b))

        return apply

    functions: dict[str, Any] = {
        "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Equal": np.equal, "Less": np.less,
        "Greater": np.greater, "And": np.logical_and, "Or": np.logical_or, "Min": np.minimum, "Max": np.maximum,
    }  # fmt: skip
    for name, function in functions.items():
        known_operator(name)(binary(function))


_enter_arithmetic()


def _each(function: Any, x: Known) -> Known:
    result = np.empty(x.shape, dtype=object)
    for index, item in np.ndenumerate(x):
        result[index] = function(item)
    return result
