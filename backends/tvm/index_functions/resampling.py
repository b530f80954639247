"""Enlarging and reducing images: each output pixel from one or four input pixels."""

from __future__ import annotations

from typing import Any

from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.evaluate import At, index_function
from graphc.backends.tvm.kernel import Expr, Index, integer
from graphc.backends.tvm.operations import shape_of, subject
from graphc.backends.tvm.scalars import to_integer
from graphc.tensor_type import Size


def _scale(args: dict[str, Any], dim: int) -> float | None:
    """The scale factor that the caller gave for spatial dimension 0 or 1, if any."""
    if args.get("scale_factors") is not None:
        return float(args["scale_factors"][dim])
    given = args.get(("scales_h", "scales_w")[dim])
    return None if given is None else float(given)


def _step(at: At, args: dict[str, Any], dim: int, size: Size, result: Size) -> Expr:
    """Input pixels an output pixel, as float32."""
    scale = _scale(args, dim)
    if scale is not None:
        return T.float32(1.0 / scale)
    return T.cast(at.size(size), "float32") / T.cast(at.size(result), "float32")


@index_function("aten.upsample_nearest2d.vec", "aten.upsample_nearest2d.default")
def _nearest(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    source = subject(args)
    inner = list(index)
    for dim in (0, 1):
        size, result = shape_of(source)[2 + dim], shape_of(node)[2 + dim]
        scale = _scale(args, dim)
        if isinstance(size, int) and isinstance(result, int) and result % size == 0 and scale in (None, result // size):
            inner[2 + dim] = index[2 + dim] // (result // size)
            continue
        position = to_integer(T.floor(T.cast(index[2 + dim], "float32") * _step(at, args, dim, size, result)), "int64")
        inner[2 + dim] = T.min(position, at.size(size) - 1)
    return at(source, inner)


@index_function("aten.upsample_bilinear2d.vec", "aten.upsample_bilinear2d.default")
def _bilinear(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    source = subject(args)
    low, high, weight = [], [], []
    for dim in (0, 1):
        size, result = shape_of(source)[2 + dim], shape_of(node)[2 + dim]
        position = T.cast(index[2 + dim], "float32")
        end = at.size(size) - 1
        if args["align_corners"]:
            intervals = T.max(integer(1), at.size(result) - 1)
            x = position * (T.cast(end, "float32") / T.cast(intervals, "float32"))
        else:
            step = _step(at, args, dim, size, result)
            x = T.max(T.float32(0.0), step * (position + T.float32(0.5)) - T.float32(0.5))
        x = T.Bind(x)
        first = T.Bind(T.min(to_integer(T.floor(x), "int64"), end))
        low.append(first)
        high.append(T.Bind(T.min(first + 1, end)))
        weight.append(T.Bind(T.min(T.float32(1.0), T.max(T.float32(0.0), x - T.cast(first, "float32")))))
    batch, channel = index[0], index[1]

    def row(y: Expr) -> Expr:
        left, right = at(source, [batch, channel, y, low[1]]), at(source, [batch, channel, y, high[1]])
        return left * (T.float32(1.0) - weight[1]) + right * weight[1]

    return row(low[0]) * (T.float32(1.0) - weight[0]) + row(high[0]) * weight[0]
