"""expand_gaps: a dense matrix from the values that are kept and the gaps between them, read by no product."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from graphc.backends.tvm import scalars
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import KernelBuilder, integer
from graphc.backends.tvm.operations import arguments, name_of, shape_of

NAME = "gap expansion"
OPERATORS = ("graphc.expand_gaps.default",)


def matches(group: Group, isa: InstructionSet) -> str | None:
    alone = len(group.nodes) == 1 and name_of(group.output) in OPERATORS
    return None if alone else "no expansion of gaps by itself"


def emit(group: Group, k: KernelBuilder) -> None:
    args = arguments(group.output)
    values, gaps, result = k.tensor(args["values"]), k.tensor(args["gaps"]), k.tensor(group.output)
    rows, columns = (int(size) for size in shape_of(group.output))
    with k.loop(rows) as row, k.loop(columns) as column:
        result.store([row, column], T.float32(0))
    place = k.local(1, "int64")
    T.buffer_store(place, integer(-1), [integer(0)])
    with k.loop(int(shape_of(args["values"])[0])) as i:
        here = T.Bind(place[integer(0)] + T.cast(gaps.load([i]), "int64") + 1)
        value = values.load([i])
        value = scalars.widened(value, k.isa.target) if values.dtype == "float16" else value
        result.store([T.truncdiv(here, integer(columns)), T.truncmod(here, integer(columns))], value)
        T.buffer_store(place, here, [integer(0)])
