"""Concatenation, and element-wise operators behind it: one loop nest an input, each over its part of the result."""

from __future__ import annotations

from torch import fx

from graphc.backends.tvm.evaluate import At
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.index_functions.views import dim_of
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, Index, KernelBuilder, integer
from graphc.backends.tvm.layout import memory_order
from graphc.backends.tvm.loops import nest
from graphc.backends.tvm.operations import arguments, dtype_of, name_of, operands, rank_of, shape_of
from graphc.backends.tvm.pointwise import POINTWISE, cast
from graphc.backends.tvm.sizes import simplify
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
    lanes = vector_lanes(group, k)

    def copy(source: fx.Node, start: Size, size: Size) -> None:
        """Compute [start, start + size) of the result along `dim`, from `source`."""

        def body(position: list[Expr]) -> None:
            inner: list[Expr] = [integer(0)] * len(order)
            for d, i in zip(order, position, strict=True):
                inner[d] = i
            outer = [i + k.size(start) if d == dim else i for d, i in enumerate(inner)]

            def read(index: Index) -> Expr:
                where = [i for d, i in enumerate(inner) if d != dim] if stacked else inner
                return cast(At(k, group.nodes)(source, where), dtype_of(source), dtype_of(join))

            target.store(outer, At(k, group.nodes, {join: read})(group.output, outer))

        nest(k, [size if d == dim else shape[d] for d in order], body, lanes, COST)

    start: Size = 0
    for source in args["tensors"]:
        if not stacked and shape_of(source) == (0,):  # torch lets an empty tensor of one dimension join anything
            continue
        size: Size = 1 if stacked else shape_of(source)[dim]
        copy(source, start, size)
        start = simplify(start + size)
