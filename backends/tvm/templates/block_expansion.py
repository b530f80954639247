"""expand_blocks: a dense matrix from the blocks that are kept, where no kernel multiplies by them as they are."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from graphc.backends.tvm import scalars
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import KernelBuilder, integer
from graphc.backends.tvm.operations import arguments, name_of, shape_of

NAME = "block expansion"
OPERATORS = ("graphc.expand_blocks.default",)


def matches(group: Group, isa: InstructionSet) -> str | None:
    alone = len(group.nodes) == 1 and name_of(group.output) in OPERATORS
    return None if alone else "no expansion of blocks by itself"


def emit(group: Group, k: KernelBuilder) -> None:
    args = arguments(group.output)
    values, mask, result = k.tensor(args["values"]), k.tensor(args["mask"]), k.tensor(group.output)
    _, height, width = (int(size) for size in shape_of(args["values"]))
    rows, columns = (int(size) for size in shape_of(args["mask"]))
    kept = k.local(1, "int64")
    T.buffer_store(kept, integer(0), [integer(0)])
    with k.loop(rows) as row, k.loop(columns) as column:
        number = T.Bind(kept[integer(0)])
        here = T.Bind(T.cast(mask.load([row, column]), "int64"))
        with k.loop(height) as y, k.loop(width) as x:
            kept_value = T.if_then_else(here > 0, values.load([number, y, x]), T.cast(T.float32(0), values.dtype))
            value = scalars.widened(kept_value, k.isa.target) if values.dtype == "float16" else kept_value
            result.store([row * height + y, column * width + x], value)
        T.buffer_store(kept, number + here, [integer(0)])
