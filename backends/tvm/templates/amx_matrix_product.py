"""linear and its kin by AMX tiles; what fills no tile is left to vectors."""

from __future__ import annotations

from functools import partial

from graphc.backends.tvm.evaluate import At, constant
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import KernelBuilder, TensorView
from graphc.backends.tvm.loops import nest
from graphc.backends.tvm.operations import dtype_of, is_stored, shape_of
from graphc.backends.tvm.sizes import contiguous, product
from graphc.backends.tvm.templates import matrix_product
from graphc.backends.tvm.templates.amx_product import emit_tiles
from graphc.backends.tvm.templates.amx_tile import Tiles, overread, refusal, tiles_for
from graphc.backends.tvm.templates.matrix_product import Operands, columns_of, emit_by
from graphc.tensor_type import Size

NAME = "matrix product by AMX"
OPERATORS = matrix_product.OPERATORS


def matches(group: Group, isa: InstructionSet) -> str | None:
    reason = matrix_product.matches(group, isa)
    if reason is not None or group.anchor is None:
        return reason
    o = Operands.of(group.anchor)
    if not is_stored(o.right):
        return "the right operand is no weight"
    if not isinstance(shape_of(o.left)[-1], int) or not isinstance(columns_of(o), int):
        return "dynamic columns"
    return refusal(isa, dtype_of(o.left), product(shape_of(o.left)[:-1]))


def emit(group: Group, k: KernelBuilder) -> None:
    o = Operands.of(group.core)
    tiles = tiles_for(dtype_of(o.left), int(columns_of(o)))
    emit_by(group, k, tiles, lambda rows: left_view(group, k, o, tiles, rows), partial(emit_tiles, k, tiles))


def left_view(group: Group, k: KernelBuilder, o: Operands, tiles: Tiles, rows: Size) -> TensorView:
    """The left operand as it lies, or a copy behind which whole tiles can be read."""
    node = o.left
    shape, run = shape_of(node), int(shape_of(node)[-1])
    # Elements behind a row meet zeros on the right: nothing to an integer, but NaN where they are NaN.
    padding = 0 if tiles.is_integer else -run % tiles.unit
    if node not in group.nodes and k.strides(node)[-1] == 1 and padding == 0:
        beyond = overread(k, tiles, rows, run, k.ranges.maximum(k.strides(node)[-2]))
        if k.may_overread(node, beyond):
            k.overread(beyond)
            return k.tensor(node)
    padded = (*shape[:-1], run + padding)
    buffer = k.workspace(product(padded) + overread(k, tiles, rows, run, run + padding), tiles.left)
    copy = TensorView(buffer, padded, tuple(k.size(step) for step in contiguous(padded)), tiles.left)
    nest(k, shape, lambda index: copy.store(index, At(k, group.nodes)(node, index)), k.isa.lanes("float32"))
    if padding:
        nought = constant(0, tiles.left)
        nest(k, (*shape[:-1], padding), lambda index: copy.store([*index[:-1], index[-1] + run], nought))
    return copy
