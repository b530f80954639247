"""Concatenation, and element-wise operators behind it: one loop nest an input, each over its part of the result."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from graphc.backends.tvm.evaluate import At
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.index_functions.views import dim_of
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, Index, KernelBuilder, integer
from graphc.backends.tvm.layout import memory_order
from graphc.backends.tvm.loops import nest
from graphc.backends.tvm.operations import arguments, dtype_of, name_of, operands, rank_of, shape_of
from graphc.backends.tvm.pointwise import POINTWISE
from graphc.backends.tvm.templates.elementwise import COST, vector_lanes
from graphc.tensor_type import Size

NAME = "concatenation"
OPERATORS: tuple[str, ...] = ()
JOINS = ("aten.cat.default", "aten.stack.default")


def matches(group: Group, isa: InstructionSet) -> str | None:
    joins = [node for node in group.nodes if name_of(node) in JOINS]
    if len(joins) != 1 or group.anchor is not None:
        return "not one concatenation"
    behind = {joins[0]}
    for node in group.nodes[group.nodes.index(joins[0]) + 1 :]:
        if any(value in behind for value in operands(node)):
            if name_of(node) not in POINTWISE or shape_of(node) != shape_of(joins[0]):
                return "more than element-wise operators of its shape behind the concatenation"
            behind.add(node)
    return None if group.output in behind else "the concatenation is not what the group computes"


def emit(group: Group, k: KernelBuilder) -> None:
    join = next(node for node in group.nodes if name_of(node) in JOINS)
    shape = shape_of(group.output)
    target = k.tensor(group.output)
    order = memory_order(k.strides(group.output), shape, k.ranges.maximum)
    args = arguments(join)
    stacked = name_of(join) == "aten.stack.default"
    dim = dim_of(args["dim"], rank_of(join))
    start: Size = 0
    for source in args["tensors"]:
        if not stacked and shape_of(source) == (0,):
            continue
        size: Size = 1 if stacked else shape_of(source)[dim]
        extents = [size if d == dim else shape[d] for d in order]
        nest(
            k, extents, _body(group, k, join, source, order, dim, start, stacked, target), vector_lanes(group, k), COST
        )
        start = start + size


def _body(group, k, join, source, order, dim, start, stacked, target):  # type: ignore[no-untyped-def]
    """The body of the loops over `source`'s part of the result, which begins at `start` along `dim`."""

    def body(position: list[Expr]) -> None:
        inner: list[Expr] = [integer(0)] * len(order)
        for d, i in zip(order, position, strict=True):
            inner[d] = i
        outer = list(inner)
        outer[dim] = inner[dim] + k.size(start)

        def read(index: Index) -> Expr:
            return T.cast(at(source, [*inner[:dim], *inner[dim + 1 :]] if stacked else inner), dtype_of(join))

        at = At(k, group.nodes, {join: read})
        target.store(outer, at(group.output, outer))

    return body
