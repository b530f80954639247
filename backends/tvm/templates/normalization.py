"""Normalization and softmax: statistics of a row, then the row again.

Rows are the elements that share their statistics: the last dimensions (layer and RMS norm), the channels of a group and
their pixels (group norm), or one dimension (softmax).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import mathematics as m
from graphc.backends.tvm.evaluate import At
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.index_functions.views import dim_of
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer
from graphc.backends.tvm.loops import nest, vector_loop
from graphc.backends.tvm.operations import arguments, dtype_of, name_of, rank_of, shape_of, subject
from graphc.backends.tvm.reducers import MAXIMUM, SUM, by_row
from graphc.backends.tvm.sizes import product
from graphc.backends.tvm.templates.register_tile import store_result
from graphc.tensor_type import Size

NAME = "normalization"
LAYER_NORMS = ("aten.layer_norm.default", "aten.native_layer_norm.default#0")
GROUP_NORMS = ("aten.group_norm.default", "aten.native_group_norm.default#0")
RMS_NORMS = ("aten.rms_norm.default", "aten._fused_rms_norm.default#0")
SOFTMAXES = ("aten._softmax.default", "aten.softmax.int", "aten._safe_softmax.default")
LOG_SOFTMAXES = ("aten._log_softmax.default", "aten.log_softmax.int")
OPERATORS = (*LAYER_NORMS, *GROUP_NORMS, *RMS_NORMS, *SOFTMAXES, *LOG_SOFTMAXES)

# Work of one element, with an exponential or a division in it.
COST = 16


def matches(group: Group, isa: InstructionSet) -> str | None:
    anchor = group.anchor
    if anchor is None or name_of(anchor) not in OPERATORS:
        return "no normalization"
    return None if dtype_of(anchor) == "float32" else f"normalization of {dtype_of(anchor)}"


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.core
    name, args = name_of(anchor), arguments(anchor)
    x = subject(args)
    if name in (*SOFTMAXES, *LOG_SOFTMAXES):
        if not shape_of(x):
            store_result(group, k, [], T.float32(0.0 if name in LOG_SOFTMAXES else 1.0))
            return
        dim = dim_of(args["dim"], rank_of(x))
        rows, columns, join = _rows(shape_of(x), [dim])
        lanes = k.isa.lanes("float32") if x in group.nodes or k.strides(x)[dim] == 1 else 1
        _softmax(group, k, x, rows, columns, join, lanes, name in LOG_SOFTMAXES, name == "aten._safe_softmax.default")
        return
    if name in GROUP_NORMS:
        _group_norm(group, k, x, args)
        return
    rank = rank_of(x)
    rows, columns, join = _rows(shape_of(x), list(range(rank - len(args["normalized_shape"]), rank)))
    eps = args["eps"] if args["eps"] is not None else 1.1920928955078125e-07  # torch's default for float32
    weight, bias = args["weight"], args.get("bias")

    def scale(index: list[Expr], value: Expr) -> Expr:
        inner = index[rank - len(columns) :]
        value = value if weight is None else value * At(k, group.nodes)(weight, inner)
        return value if bias is None else value + At(k, group.nodes)(bias, inner)

    _standardize(group, k, x, rows, columns, join, eps, name not in RMS_NORMS, scale)


Join = Callable[[list[Expr], list[Expr]], list[Expr]]


def _rows(shape: tuple[Size, ...], inside: list[int]) -> tuple[list[Size], list[Size], Join]:
    """Sizes of the rows' index, of the index within a row, and the function from both to the index of an element."""
    outside = [dim for dim in range(len(shape)) if dim not in inside]

    def join(row: list[Expr], column: list[Expr]) -> list[Expr]:
        by_dim = dict(zip([*outside, *inside], [*row, *column], strict=True))
        return [by_dim[dim] for dim in range(len(shape))]

    return [shape[dim] for dim in outside], [shape[dim] for dim in inside], join


def _each(k: KernelBuilder, columns: list[Size], lanes: int, body: Callable[[list[Expr]], None]) -> None:
    """`body` for each element of a row."""

    def inner(index: list[Expr], rest: list[Size]) -> None:
        extent = rest[0] if isinstance(rest[0], int) else k.size(rest[0])
        if len(rest) == 1:
            vector_loop(k, extent, lanes, lambda i: body([*index, i]))
            return
        with k.loop(extent) as position:
            inner([*index, position], rest[1:])

    inner([], columns)


def _extents(k: KernelBuilder, columns: list[Size]) -> list[int | Expr]:
    return [size if isinstance(size, int) else k.size(size) for size in columns]


def _standardize(
    group: Group,
    k: KernelBuilder,
    x: fx.Node,
    rows: list[Size],
    columns: list[Size],
    join: Join,
    eps: float,
    centred: bool,
    scale: Callable[[list[Expr], Expr], Expr],
) -> None:
    """(x - mean) / sqrt(variance + eps), the mean 0 where not `centred`.

    In two passes, and relative to the row's first element, so that a large mean costs no digits.
    """
    lanes = k.isa.lanes("float32")
    extents = _extents(k, columns)
    count = product(columns)

    def row(position: list[Expr]) -> None:
        number = T.cast(k.size(count), "float32")

        zero = [integer(0)] * len(columns)
        origin = At(k, group.nodes)(x, join(position, zero)) if centred else T.float32(0.0)

        def read(column: list[Expr]) -> Expr:
            value = At(k, group.nodes)(x, join(position, column))
            return value - origin if centred else value

        mean = T.Bind(by_row(k, extents, SUM, "float32", read, lanes) / number) if centred else T.float32(0.0)

        def square(column: list[Expr]) -> Expr:
            difference = T.Bind(read(column) - mean)
            return difference * difference

        variance = by_row(k, extents, SUM, "float32", square, lanes) / number
        factor = T.Bind(T.float32(1.0) / T.sqrt(variance + T.float32(eps)))

        def write(column: list[Expr]) -> None:
            index = join(position, column)
            store_result(group, k, index, scale(index, (read(column) - mean) * factor))

        _each(k, columns, lanes, write)

    nest(k, rows, row, cost=COST * k.ranges.maximum(count))


def _group_norm(group: Group, k: KernelBuilder, x: fx.Node, args: dict[str, Any]) -> None:
    """Rows are (image, group of channels); a row's elements its channels and pixels."""
    batch, channels, *spatial = shape_of(x)
    groups = args["num_groups"] if "num_groups" in args else args["group"]
    size = channels // groups
    weight, bias = args["weight"], args["bias"]

    def join(row: list[Expr], column: list[Expr]) -> list[Expr]:
        return (
            [row[0], row[1] * size + column[-1], *column[:-1]]
            if last
            else [row[0], row[1] * size + column[0], *column[1:]]
        )

    # The channels come last where they lie next to each other.
    last = x not in group.nodes and k.strides(x)[1] == 1
    columns = [*spatial, size] if last else [size, *spatial]

    def scale(index: list[Expr], value: Expr) -> Expr:
        value = value if weight is None else value * At(k, group.nodes)(weight, [index[1]])
        return value if bias is None else value + At(k, group.nodes)(bias, [index[1]])

    _standardize(group, k, x, [batch, groups], columns, join, args["eps"], True, scale)


def _softmax(
    group: Group,
    k: KernelBuilder,
    x: fx.Node,
    rows: list[Size],
    columns: list[Size],
    join: Join,
    lanes: int,
    logarithm: bool,
    safe: bool,
) -> None:
    """e^(x - max) / sum, or x - max - ln(sum). `safe`: a row of -infinity gives nought instead of NaN."""
    extents = _extents(k, columns)

    def row(position: list[Expr]) -> None:
        def read(column: list[Expr]) -> Expr:
            return At(k, group.nodes)(x, join(position, column))

        top = by_row(k, extents, MAXIMUM, "float32", read, lanes)
        if safe:
            top = T.Bind(T.max(T.float32(-3.0e38), top))
        total = by_row(k, extents, SUM, "float32", lambda column: m.exp(read(column) - top), lanes)
        if logarithm:
            shift = T.Bind(top + m.log(total))
        else:
            factor = T.Bind(T.float32(1.0) / (T.max(T.float32(1e-38), total) if safe else total))

        def write(column: list[Expr]) -> None:
            value = read(column) - shift if logarithm else m.exp(read(column) - top) * factor
            store_result(group, k, join(position, column), value)

        _each(k, columns, lanes, write)

    nest(k, rows, row, cost=COST * k.ranges.maximum(product(columns)))
