"""Operators that move elements in ways that no strides describe."""

from __future__ import annotations

from typing import Any

from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import sizes
from graphc.backends.tvm.evaluate import At, index_function
from graphc.backends.tvm.index_functions.views import dim_of, part
from graphc.backends.tvm.kernel import Expr, Index, integer
from graphc.backends.tvm.loops import unflatten
from graphc.backends.tvm.operations import dtype_of, rank_of, shape_of
from graphc.backends.tvm.scalars import equal
from graphc.tensor_type import Size


@index_function("aten.flip.default")
def _flip(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    shape = shape_of(node)
    inner = list(index)
    for dim in args["dims"]:
        dim = dim_of(dim, len(shape))
        inner[dim] = at.size(shape[dim]) - 1 - inner[dim]
    return at(args["self"], inner)


@index_function("aten.roll.default")
def _roll(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    shape = shape_of(node)
    inner = list(index)
    if not args["dims"]:
        flat = inner[0]
        for dim in range(1, len(shape)):
            flat = flat * at.size(shape[dim]) + inner[dim]
        flat = T.floormod(flat - args["shifts"][0], at.size(sizes.product(shape)))
        return at(args["self"], unflatten(flat, [at.size(size) for size in shape]))
    for dim, shift in zip(args["dims"], args["shifts"], strict=True):
        dim = dim_of(dim, len(shape))
        inner[dim] = T.floormod(inner[dim] - at.size(shift), at.size(shape[dim]))
    return at(args["self"], inner)


@index_function("aten.repeat.default")
def _repeat(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    shape = shape_of(args["self"])
    tail = list(index)[len(index) - len(shape) :]
    return at(args["self"], [T.floormod(i, at.size(size)) for i, size in zip(tail, shape, strict=True)])


@index_function("aten.pixel_shuffle.default")
def _pixel_shuffle(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    factor = args["upscale_factor"]
    *batch, channel, row, column = index
    inner = channel * factor * factor + T.floormod(row, factor) * factor + T.floormod(column, factor)
    return at(args["self"], [*batch, inner, T.floordiv(row, factor), T.floordiv(column, factor)])


@index_function("aten.repeat_interleave.self_int")
def _repeat_interleave(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    source, repeats = args["self"], args["repeats"]
    shape = shape_of(source)
    if args["dim"] is None:
        return at(source, unflatten(T.truncdiv(index[0], at.size(repeats)), [at.size(size) for size in shape]))
    dim = dim_of(args["dim"], len(shape))
    return at(source, [*index[:dim], T.truncdiv(index[dim], at.size(repeats)), *list(index)[dim + 1 :]])


# -- which input an element comes from depends on its index: loads are guarded ------------------------


@index_function("aten.constant_pad_nd.default")
def _constant_pad(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    source, pads = args["self"], args["pad"]
    shape, inner, conditions = shape_of(source), list(index), []
    for pair in range(len(pads) // 2):
        dim = len(shape) - 1 - pair
        inner[dim] = index[dim] - at.size(pads[2 * pair])
        conditions += [inner[dim] >= 0, inner[dim] < at.size(shape[dim])]
    with at.guard(*conditions):
        value = at(source, inner)
    condition = conditions[0]
    for other in conditions[1:]:
        condition = T.And(condition, other)
    return T.Select(condition, value, at.number(args["value"] or 0, dtype_of(node)))


@index_function("aten.cat.default")
def _cat(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    dim = dim_of(args["dim"], rank_of(node))
    result = None
    start: Size = 0
    pieces = []
    for source in args["tensors"]:
        if shape_of(source) == (0,):  # torch lets an empty tensor of one dimension join anything
            continue
        size = shape_of(source)[dim]
        inner = list(index)
        inner[dim] = index[dim] - at.size(start)
        with at.guard(inner[dim] >= 0, inner[dim] < at.size(size)):
            pieces.append((inner[dim] < at.size(size), T.cast(at(source, inner), dtype_of(node))))
        start = sizes.simplify(start + size)
    for condition, value in reversed(pieces):
        result = value if result is None else T.Select(condition, value, result)
    return result


@index_function("aten.stack.default")
def _stack(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    dim = dim_of(args["dim"], rank_of(node))
    which, inner = index[dim], [*index[:dim], *list(index)[dim + 1 :]]
    result = None
    for position, source in reversed(list(enumerate(args["tensors"]))):
        with at.guard(equal(which, integer(position))):
            value = T.cast(at(source, inner), dtype_of(node))
        result = value if result is None else T.Select(equal(which, integer(position)), value, result)
    return result


@index_function("aten.slice_scatter.default")
def _slice_scatter(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    dim, start, step = part(args, node)
    inner = list(index)
    inner[dim] = T.floordiv(index[dim] - at.size(start), step)
    conditions = [index[dim] >= at.size(start), inner[dim] < at.size(shape_of(args["src"])[dim])]
    if step != 1:
        conditions.append(equal(T.floormod(index[dim] - at.size(start), integer(step)), integer(0)))
    with at.guard(*conditions):
        value = at(args["src"], inner)
    condition = conditions[0]
    for other in conditions[1:]:
        condition = T.And(condition, other)
    return T.Select(condition, value, at(args["self"], index))


# The operators above whose loads stand under conditions: their loops are not vectorized along a conditional dimension.
GUARDED = frozenset(
    {"aten.constant_pad_nd.default", "aten.cat.default", "aten.stack.default", "aten.slice_scatter.default"}
)
