"""linear and its kin by AMX tiles; what fills no tile is left to vectors."""

from __future__ import annotations

from functools import partial

from graphc.backends.tvm.evaluate import At
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import KernelBuilder, TensorView
from graphc.backends.tvm.loops import nest
from graphc.backends.tvm.operations import dtype_of, is_stored, name_of, shape_of
from graphc.backends.tvm.sizes import contiguous, product
from graphc.backends.tvm.templates.amx_tile import ROWS, Tiles, emit_tiles, integer_tiles, overread, refusal
from graphc.backends.tvm.templates.matrix_product import Operands, columns_of, emit_by
from graphc.tensor_type import Size

NAME = "matrix product by AMX"
OPERATORS = ("graphc.integer_linear.default",)


def matches(group: Group, isa: InstructionSet) -> str | None:
    anchor = group.anchor
    if anchor is None or name_of(anchor) not in OPERATORS:
        return "no matrix product"
    o = Operands.of(anchor)
    if not is_stored(o.right) or o.right in group.nodes:
        return "the right operand is no weight"
    if not isinstance(shape_of(o.left)[-1], int) or not isinstance(columns_of(o), int):
        return "dynamic columns"
    rows = product(shape_of(o.left)[:-1])
    return refusal(isa, dtype_of(o.left), rows if isinstance(rows, int) else ROWS)


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.anchor
    assert anchor is not None
    o = Operands.of(anchor)
    tiles = integer_tiles(dtype_of(o.left)).narrowed(int(columns_of(o)))
    emit_by(group, k, tiles, lambda rows: left_view(group, k, o, tiles, rows), partial(emit_tiles, k, tiles))


def left_view(group: Group, k: KernelBuilder, o: Operands, tiles: Tiles, rows: Size) -> TensorView:
    """The left operand as it lies, or a copy behind which whole tiles can be read."""
    node = o.left
    shape, run = shape_of(node), int(shape_of(node)[-1])
    beyond = overread(k, tiles, rows, run, run)
    if node not in group.nodes and k.strides(node)[-1] == 1:
        in_place = overread(k, tiles, rows, run, k.ranges.maximum(k.strides(node)[-2]))
        if k.may_overread(node, in_place):
            k.overread(in_place)
            return k.tensor(node)
    buffer = k.workspace(product(shape) + beyond, tiles.left)
    copy = TensorView(buffer, shape, tuple(k.size(step) for step in contiguous(shape)), tiles.left)
    nest(k, shape, lambda index: copy.store(index, At(k, group.nodes)(node, index)), k.isa.lanes(tiles.left))
    return copy
