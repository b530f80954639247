"""Cumulative sums and products: one row after the other, element by element."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from graphc.backends.tvm.evaluate import At, constant
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.index_functions.views import dim_of
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer
from graphc.backends.tvm.loops import nest
from graphc.backends.tvm.operations import arguments, dtype_of, name_of, rank_of, shape_of
from graphc.backends.tvm.pointwise import cast
from graphc.backends.tvm.reducers import PRODUCT, SUM
from graphc.backends.tvm.templates.register_tile import store_result

NAME = "scan"
REDUCERS = {"aten.cumsum.default": SUM, "aten.cumprod.default": PRODUCT}
OPERATORS = tuple(REDUCERS)


def matches(group: Group, isa: InstructionSet) -> str | None:
    return None if group.anchor is not None and name_of(group.anchor) in OPERATORS else "no scan"


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.core
    args, reducer, dtype = arguments(anchor), REDUCERS[name_of(anchor)], dtype_of(anchor)
    x = args["self"]
    if not shape_of(x):
        store_result(group, k, [], cast(At(k, group.nodes)(x, []), dtype_of(x), dtype))
        return
    dim = dim_of(args["dim"], rank_of(x))
    shape = shape_of(x)

    def row(outer: list[Expr]) -> None:
        total = k.local(1, dtype)
        T.buffer_store(total, constant(reducer.neutral(dtype), dtype), [integer(0)])
        with k.loop(k.size(shape[dim])) as i:
            index = [*outer[:dim], i, *outer[dim:]]
            item = cast(At(k, group.nodes)(x, index), dtype_of(x), dtype)
            T.buffer_store(total, reducer.combine(total[integer(0)], item), [integer(0)])
            store_result(group, k, index, total[integer(0)])

    nest(k, [*shape[:dim], *shape[dim + 1 :]], row, cost=k.ranges.maximum(shape[dim]))
