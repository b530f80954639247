"""Pools over windows of one or two dimensions: maximum, average, adaptive average, integer sum.

A vector holds neighbouring channels. Windows are clipped to the image, so no padding is stored.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from graphc.backends.tvm.evaluate import At
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer
from graphc.backends.tvm.operations import arguments, dtype_of, name_of, rank_of, shape_of, subject
from graphc.backends.tvm.reducers import MAXIMUM, SUM, by_columns
from graphc.backends.tvm.templates.register_tile import store_result

NAME = "pooling"
MAXIMA = ("aten.max_pool2d.default", "aten.max_pool1d.default", "aten.max_pool2d_with_indices.default#0")
AVERAGES = ("aten.avg_pool2d.default", "aten.avg_pool1d.default")
ADAPTIVE = (
    "aten.adaptive_avg_pool2d.default",
    "aten._adaptive_avg_pool2d.default",
    "aten.adaptive_avg_pool1d.default",
)
INTEGER_SUM = "graphc.integer_sum_pool2d.default"
OPERATORS = (*MAXIMA, *AVERAGES, *ADAPTIVE, INTEGER_SUM)


def matches(group: Group, isa: InstructionSet) -> str | None:
    anchor = group.anchor
    if anchor is None or name_of(anchor) not in OPERATORS:
        return "no pool"
    if name_of(anchor) not in (*MAXIMA, INTEGER_SUM) and dtype_of(anchor) != "float32":
        return f"average of {dtype_of(anchor)}"
    return None


def _each(values: Any, count: int) -> list[int]:
    """One value a spatial dimension."""
    listed: list[int] = [values] if isinstance(values, int) else list(values)
    return listed * (count if len(listed) == 1 else 1)


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.core
    name, args = name_of(anchor), arguments(anchor)
    x = subject(args)
    spatial = 1 if "1d" in name else 2
    image = [k.size(size) for size in shape_of(x)[-spatial:]]
    result = shape_of(anchor)
    leading = result[: -spatial - 1]
    rank = rank_of(x)
    adaptive = name in ADAPTIVE
    if not adaptive:
        kernel = _each(args["kernel"] if name == INTEGER_SUM else args["kernel_size"], spatial)
        stride = _each(args["stride"] or kernel, spatial)
        padding = _each(args["padding"], spatial)
        dilation = _each(args.get("dilation", 1), spatial)
    counts = [k.size(size) for size in result[-spatial:]]

    def start(d: int, position: Expr) -> Expr:
        return position * stride[d] - padding[d]

    def window(outer: list[Expr]) -> list[tuple[Expr, Expr]]:
        bounds = []
        for d, position in enumerate(outer[-spatial:]):
            if adaptive:
                bounds.append(
                    (position * image[d] // counts[d], ((position + 1) * image[d] + counts[d] - 1) // counts[d])
                )
                continue
            before, step = start(d, position), dilation[d]
            first = T.max(integer(0), (integer(step - 1) - before) // step)
            past = T.min(integer(kernel[d]), (image[d] - before + (step - 1)) // step)
            bounds.append((T.Bind(first), T.Bind(past)))
        return bounds

    def index_of(outer: list[Expr], channel: Expr, spot: list[Expr]) -> list[Expr]:
        index = [*outer[: len(leading)], channel, *spot]
        return index if len(index) == rank else index[-rank:]

    dtype = dtype_of(anchor)
    reducer = MAXIMUM if name in MAXIMA else SUM

    def value(outer: list[Expr], channel: Expr, at: list[Expr]) -> Expr:
        spot = list(at)
        if not adaptive:
            spot = [start(d, outer[len(leading) + d]) + at[d] * dilation[d] for d in range(spatial)]
        item = At(k, group.nodes)(x, index_of(outer, channel, spot))
        return T.cast(item, "int32") - args["x_zero"] if name == INTEGER_SUM else item

    def divisor(outer: list[Expr]) -> Expr:
        if args.get("divisor_override"):
            return T.float32(args["divisor_override"])
        count = integer(1)
        for d, (first, past) in enumerate(window(outer)):
            if not adaptive and args["count_include_pad"]:
                before = start(d, outer[len(leading) + d])
                first, past = before, T.min(before + kernel[d], image[d] + padding[d])
            count = count * (past - first)
        return T.cast(count, "float32")

    def store(outer: list[Expr], channel: Expr, total: Expr) -> None:
        if name not in (*MAXIMA, INTEGER_SUM):
            total = total / divisor(outer)
        store_result(group, k, index_of(outer, channel, outer[len(leading) :]), total)

    channels = result[-spatial - 1]
    by_columns(k, [*leading, *result[-spatial:]], channels, reducer, dtype, window, value, store)
