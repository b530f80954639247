"""Reductions over dimensions: sum, mean, extrema and their positions, product, truth, variance."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import scalars
from graphc.backends.tvm.evaluate import At, constant
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer
from graphc.backends.tvm.layout import memory_order
from graphc.backends.tvm.loops import nest, unflatten
from graphc.backends.tvm.operations import arguments, dtype_of, name_of, rank_of, shape_of, type_of
from graphc.backends.tvm.pointwise import cast
from graphc.backends.tvm.reducers import ALL, ANY, MAXIMUM, MINIMUM, PRODUCT, SUM, Reducer, by_columns, by_row
from graphc.backends.tvm.sizes import contiguous, product
from graphc.backends.tvm.templates.register_tile import store_result
from graphc.tensor_type import Size

NAME = "reduction"
REDUCERS: dict[str, Reducer] = {
    "aten.mean.dim": SUM,
    "aten.mean.default": SUM,
    "aten.sum.dim_IntList": SUM,
    "aten.sum.default": SUM,
    "aten.amax.default": MAXIMUM,
    "aten.amin.default": MINIMUM,
    "aten.max.default": MAXIMUM,
    "aten.min.default": MINIMUM,
    "aten.max.dim#0": MAXIMUM,
    "aten.min.dim#0": MINIMUM,
    "aten.prod.dim_int": PRODUCT,
    "aten.prod.default": PRODUCT,
    "aten.any.dim": ANY,
    "aten.any.dims": ANY,
    "aten.any.default": ANY,
    "aten.all.dim": ALL,
    "aten.all.default": ALL,
}
POSITIONS = {
    "aten.argmax.default": True,
    "aten.argmin.default": False,
    "aten.max.dim#1": True,
    "aten.min.dim#1": False,
}
VARIANCE = "aten.var.correction"
NORM = "aten.linalg_vector_norm.default"
OPERATORS = (*REDUCERS, *POSITIONS, VARIANCE, NORM)


def matches(group: Group, isa: InstructionSet) -> str | None:
    anchor = group.anchor
    if anchor is None or name_of(anchor) not in OPERATORS:
        return "no reduction"
    if name_of(anchor) in (VARIANCE, NORM) and dtype_of(anchor) != "float32":
        return f"variance or norm of {dtype_of(anchor)}"
    if name_of(anchor) == NORM and arguments(anchor)["ord"] not in (1, 2, math.inf):
        return "only the norms of order 1, 2 and infinity"
    return None


def reduced_dims(node: fx.Node) -> list[int]:
    """The dimensions that a reduction takes away, all of them where none is named."""
    args = arguments(node)
    rank = rank_of(args["self"])
    dims = args.get("dim")
    if dims is None or dims == []:
        return list(range(rank))
    return sorted(dim % rank if rank else 0 for dim in ([dims] if isinstance(dims, int) else dims))


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.core
    name, args = name_of(anchor), arguments(anchor)
    x: fx.Node = args["self"]
    shape = shape_of(x)
    if not shape:
        _emit_scalar(group, k, x)
        return
    gone = reduced_dims(anchor)
    kept = [dim for dim in range(len(shape)) if dim not in gone]
    strides = k.strides(x) if x not in group.nodes else contiguous(shape)
    order = memory_order(strides, shape, k.ranges.maximum)
    gone.sort(key=order.index)
    kept.sort(key=order.index)
    extents = [shape[dim] for dim in kept]
    keepdim = args.get("keepdim", False) and rank_of(anchor) == len(shape)

    def full(outer: list[Expr], inner: list[Expr]) -> list[Expr]:
        """The index into x of kept and reduced positions."""
        index: list[Expr] = [integer(0)] * len(shape)
        for dim, i in zip([*kept, *gone], [*outer, *inner], strict=True):
            index[dim] = i
        return index

    def result(outer: list[Expr]) -> list[Expr]:
        index = full(outer, [integer(0)] * len(gone))
        return index if keepdim else [index[dim] for dim in range(len(shape)) if dim not in gone]

    if name in POSITIONS:
        _emit_position(group, k, x, extents, [shape[dim] for dim in sorted(gone)], full, result, gone)
        return
    dtype = _sum_dtype(anchor, x)
    count = product([shape[dim] for dim in gone])

    kind = "int32" if dtype == "truth" else dtype
    order_of_norm = args.get("ord")

    def read(index: list[Expr]) -> Expr:
        value = cast(At(k, group.nodes)(x, index), dtype_of(x), kind)
        if name == NORM:
            value = T.Bind(value)
            return value * value if order_of_norm == 2 else scalars.absolute(value)
        return value

    def finish(index: list[Expr], total: Expr) -> None:
        if name.startswith("aten.mean"):
            total = total / T.cast(k.size(count), kind)
        if name == NORM and order_of_norm == 2:
            total = T.sqrt(total)
        store_result(group, k, index, cast(total, kind, dtype_of(anchor)))

    if name == VARIANCE:
        _emit_variance(group, k, extents, [shape[dim] for dim in gone], full, result, read, count, args)
        return
    reducer = (MAXIMUM if order_of_norm == math.inf else SUM) if name == NORM else REDUCERS[name]
    if kept and order[-1] == kept[-1] and shape[kept[-1]] != 1:
        window = [(integer(0), k.size(shape[dim])) for dim in gone]
        work = k.ranges.maximum(count)
        by_columns(
            k,
            extents[:-1],
            extents[-1],
            reducer,
            kind,
            lambda outer: window,
            lambda outer, column, inner: read(full([*outer, column], inner)),
            lambda outer, column, total: finish(result([*outer, column]), total),
            work,
        )
        return
    sizes = [k.size(shape[dim]) for dim in gone]
    lanes = k.isa.lanes("float32") if strides[gone[-1]] == 1 else 1

    def row(outer: list[Expr]) -> None:
        finish(result(outer), by_row(k, sizes, reducer, kind, lambda inner: read(full(outer, inner)), lanes))

    nest(k, extents, row, cost=k.ranges.maximum(count))


def _emit_scalar(group: Group, k: KernelBuilder, x: fx.Node) -> None:
    """A reduction of a value without dimensions: the value itself, and position 0."""
    anchor = group.core
    value = At(k, group.nodes)(x, [])
    if name_of(anchor) in POSITIONS:
        value = constant(0, dtype_of(anchor))
    elif name_of(anchor) == NORM:
        value = scalars.absolute(value)
    elif name_of(anchor) == VARIANCE:
        value = constant(float("nan"), dtype_of(anchor))
    else:
        value = cast(value, dtype_of(x), dtype_of(anchor))
    store_result(group, k, [], value)


def _sum_dtype(anchor: fx.Node, x: fx.Node) -> str:
    """The type that a reduction accumulates in; "truth" for booleans, which are 0 or 1."""
    if type_of(anchor).dtype is torch.bool:
        return "truth"
    return dtype_of(anchor)


def _emit_variance(
    group: Group,
    k: KernelBuilder,
    extents: list[Size],
    gone: list[Size],
    full: Any,
    result: Any,
    read: Any,
    count: Size,
    args: dict[str, Any],
) -> None:
    """In two passes, the mean first: sums of squares alone would cancel."""
    sizes = [k.size(size) for size in gone]
    lanes = k.isa.lanes("float32")
    correction = 1 if args["correction"] is None else args["correction"]

    def row(outer: list[Expr]) -> None:
        number = T.cast(k.size(count), "float32")
        mean = by_row(k, sizes, SUM, "float32", lambda inner: read(full(outer, inner)), lanes) / number
        mean = T.Bind(mean)

        def square(inner: list[Expr]) -> Expr:
            difference = T.Bind(read(full(outer, inner)) - mean)
            return difference * difference

        total = by_row(k, sizes, SUM, "float32", square, lanes)
        freedom = T.max(T.float32(0.0), number - T.float32(correction))
        store_result(group, k, result(outer), total / freedom)

    nest(k, extents, row, cost=2 * k.ranges.maximum(count))


def _emit_position(
    group: Group,
    k: KernelBuilder,
    x: fx.Node,
    extents: list[Size],
    gone: list[Size],
    full: Any,
    result: Any,
    order: list[int],
) -> None:
    """The first position of the extremum, NaN counted as the extremum."""
    anchor = group.core
    largest = POSITIONS[name_of(anchor)]
    dtype = dtype_of(x) if dtype_of(x) != "bool" else "int32"
    dims = sorted(order)

    def row(outer: list[Expr]) -> None:
        best, where = k.local(1, dtype), k.local(1, "int64")
        zero = integer(0)

        def read(inner: list[Expr]) -> Expr:
            by_dim = dict(zip(dims, inner, strict=True))
            return T.Bind(cast(At(k, group.nodes)(x, full(outer, [by_dim[dim] for dim in order])), dtype_of(x), dtype))

        T.buffer_store(best, read([zero] * len(gone)), [zero])
        T.buffer_store(where, zero, [zero])
        size = [k.size(extent) for extent in gone]
        volume = zero + 1
        for extent in size:
            volume = volume * extent
        with k.loop(volume) as flat:
            item = read(unflatten(flat, size))
            held = T.Bind(best[zero])
            better = item > held if largest else item < held
            if scalars.is_float(item):
                better = T.Or(better, T.And(scalars.is_nan(item), T.Not(scalars.is_nan(held))))
            better = T.Bind(better)
            T.buffer_store(best, T.Select(better, item, held), [zero])
            T.buffer_store(where, T.Select(better, flat, where[zero]), [zero])
        store_result(group, k, result(outer), where[zero])

    nest(k, extents, row, cost=k.ranges.maximum(product(gone)))
