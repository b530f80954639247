"""linear, mm, bmm, matmul and their kin, float and integer, as products of register tiles.

A weight is packed at compile time (or at load); an activation on the right is packed by the kernel itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import tvm.tirx as tirx
from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.evaluate import At, broadcast, constant
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, TensorView, integer
from graphc.backends.tvm.loops import nest, unflatten
from graphc.backends.tvm.operations import BFLOAT16, arguments, dtype_of, is_stored, name_of, narrow_operands, shape_of
from graphc.backends.tvm.sizes import contiguous, product, simplify
from graphc.backends.tvm.templates import multiply_accumulate
from graphc.backends.tvm.templates.amx_tile import Tiles
from graphc.backends.tvm.templates.multiply_accumulate import MultiplyAccumulate
from graphc.backends.tvm.templates.register_tile import Product, emit_product, narrowed, store_result
from graphc.backends.tvm.templates.right_operand import RightOperand
from graphc.tensor_type import Size

NAME = "matrix product"


@dataclass(frozen=True)
class Operands:
    """left [..., M, K] times right [..., K, N] (transposed: [N, K]), plus an addend that broadcasts to the result."""

    left: fx.Node
    right: fx.Node
    transposed: bool
    addend: fx.Node | None
    zero: int
    alpha: float
    beta: float

    @staticmethod
    def of(node: fx.Node) -> Operands:
        o = Operands._as_written(node)
        left, right = narrow_operands(o.left, o.right)
        return replace(o, left=left, right=right)

    @staticmethod
    def _as_written(node: fx.Node) -> Operands:
        args = arguments(node)
        match name_of(node):
            case "aten.linear.default":
                return Operands(args["input"], args["weight"], True, args["bias"], 0, 1, 1)
            case "graphc.integer_linear.default":
                return Operands(args["x"], args["weight"], True, args["bias"], args["x_zero"], 1, 1)
            case "aten.addmm.default":
                return Operands(args["mat1"], args["mat2"], False, args["self"], 0, args["alpha"], args["beta"])
            case "aten.baddbmm.default":
                return Operands(args["batch1"], args["batch2"], False, args["self"], 0, args["alpha"], args["beta"])
            case "aten.matmul.default":
                return Operands(args["self"], args["other"], False, None, 0, 1, 1)
            case _:
                return Operands(args["self"], args["mat2"], False, None, 0, 1, 1)


OPERATORS = (
    "aten.linear.default",
    "graphc.integer_linear.default",
    "aten.mm.default",
    "aten.bmm.default",
    "aten.addmm.default",
    "aten.baddbmm.default",
    "aten.matmul.default",
)


def matches(group: Group, isa: InstructionSet) -> str | None:
    anchor = group.anchor
    if anchor is None or name_of(anchor) not in OPERATORS:
        return "no matrix product"
    o = Operands.of(anchor)
    if o.right in group.nodes:
        return "the right operand is computed inside the group"
    if group.absorbed:
        return "the weight is read as it is stored"
    if name_of(anchor) == "graphc.integer_linear.default":
        return None if is_stored(o.right) else "integer products of two activations"
    if dtype_of(anchor) != "float32":
        return f"product of {dtype_of(o.left)} and {dtype_of(o.right)}"
    return None


def columns_of(o: Operands) -> Size:
    """Columns of the right operand: one where it is a vector."""
    right = shape_of(o.right)
    return 1 if len(right) == 1 else right[-2 if o.transposed else -1]


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.core
    o = Operands.of(anchor)
    integers = name_of(anchor) == "graphc.integer_linear.default"
    mac = multiply_accumulate.integer(k.isa) if integers else multiply_accumulate.floating(k.isa, dtype_of(o.left))
    mac = narrowed(mac, k.ranges.maximum(columns_of(o)))
    emit_by(group, k, mac, lambda rows: left_view(group, k, o.left, mac), partial(emit_product, k, mac))


def emit_by(
    group: Group,
    k: KernelBuilder,
    mac: MultiplyAccumulate | Tiles,
    view: Callable[[Size], TensorView],
    multiply: Callable[[tirx.Buffer, tirx.Buffer, Product], None],
) -> None:
    """The product by one kind of instruction. view(rows): the left operand as it is read, so many rows at a time."""
    anchor = group.core
    o = Operands.of(anchor)
    floating = name_of(anchor) != "graphc.integer_linear.default"
    left_shape, right_shape = shape_of(o.left), shape_of(o.right)
    depth = left_shape[-1]
    vector_right = len(right_shape) == 1
    columns = columns_of(o)
    result = shape_of(anchor)
    # The result without its column: [batch..., M], where the left operand has rows at all.
    outer = result if vector_right else result[:-1]
    right_batch = right_shape[:-2]

    kept = [d for d in range(len(right_batch)) if right_batch[d] != 1 and k.strides(o.right)[d] != 0]
    matrices = product([right_batch[d] for d in kept])
    lead = len(result) - 2 - len(right_batch)  # batch dimensions of the result before those of the right operand

    # Dimensions of the result that choose no matrix on the right join the rows, where the left operand lies in line.
    rows_from = max(len(outer) - 1, 0)
    lowest = max(0, lead + max(kept, default=-1) + 1)
    while rows_from > lowest and _in_line(k, o, group, outer, rows_from):
        rows_from -= 1
    batch, rows = outer[:rows_from], outer[rows_from:]
    source = view(product(rows))

    def matrix(position: list[Expr]) -> Expr:
        flat = integer(0)
        for d in kept:
            flat = flat * k.size(right_batch[d]) + position[lead + d]
        return flat

    def element(number: Any, n: Any, tap: Any, j: Any) -> list[Any]:
        position: list[Any] = [number * 0] * len(right_batch)
        for d in reversed(kept):
            size = right_batch[d] if isinstance(right_batch[d], int) else k.size(right_batch[d])
            position[d], number = number % size, number // size
        if vector_right:
            return [j]
        return [*position, n, j] if o.transposed else [*position, j, n]

    kind = f"matrix {o.transposed} {kept}"
    operand = RightOperand(o.right, matrices, columns, 1, depth, element, kind)
    weight = operand.packed(k, mac)
    shift = 0 if floating else mac.flip(dtype_of(o.left)) - o.zero
    biased = o.addend is not None and shape_of(o.addend) == (columns,) and o.alpha == o.beta == 1
    in_sums = isinstance(mac, MultiplyAccumulate) and (biased if floating else True)
    first = operand.initial(k, o.addend, shift, mac.width) if in_sums else None
    correction = None if floating or first is not None else operand.correction(k, o.addend, shift)
    sizes = [k.size(size) for size in rows]

    def left(position: list[Expr], y: Expr, x: Expr, tap: list[Expr]) -> Expr:
        if len(left_shape) == 1:
            return source.offset([integer(0)])
        index = [*position, *unflatten(x, sizes)][len(outer) - len(left_shape) + 1 :]
        return source.offset([*broadcast_to(index, left_shape[:-1]), integer(0)])

    def store(position: list[Expr], y: Expr, x: Expr, n: Expr, total: Expr) -> None:
        index = [*position, *unflatten(x, sizes)] if rows else list(position)
        if not vector_right:
            index.append(n)
        value = total
        if correction is not None:
            value = value + correction(n)
        if floating and o.alpha != 1:
            value = value * constant(o.alpha, "float32")
        if floating and first is None and o.addend is not None and o.beta != 0:
            addend = At(k, group.nodes)(o.addend, broadcast(index, o.addend))
            value = value + (addend if o.beta == 1 else addend * constant(o.beta, "float32"))
        store_result(group, k, index, value)

    pitch = source.strides[-2] if len(left_shape) > 1 else None
    shape = Product(batch, 1, product(rows), columns, [1], depth, left, matrix, store, pitch)
    if first is not None:
        shape = replace(shape, initial=lambda position, n, count: first(n, count))
    multiply(source.buffer, weight, shape)


def broadcast_to(index: list[Expr], shape: tuple[Size, ...]) -> list[Expr]:
    return [integer(0) if size == 1 else i for i, size in zip(index, shape, strict=True)]


def _in_line(k: KernelBuilder, o: Operands, group: Group, outer: tuple[Size, ...], first: int) -> bool:
    """Whether dimension first - 1 of the rows continues dimension `first` in the left operand's memory."""
    shape = shape_of(o.left)
    if shape[:-1] != outer:  # broadcast
        return False
    strides = k.strides(o.left) if o.left not in group.nodes else contiguous(shape)
    return simplify(strides[first] * outer[first] - strides[first - 1]) == 0


def left_view(group: Group, k: KernelBuilder, node: fx.Node, mac: MultiplyAccumulate) -> TensorView:
    """The left operand as it lies, or copied in the type and with the padding that the multiply-add reads."""
    shape = shape_of(node)
    dtype = dtype_of(node)
    depth = shape[-1]
    inner = k.strides(node)[-1] if node not in group.nodes else 0
    whole = mac.depth == 1 or (isinstance(depth, int) and depth % mac.depth == 0)
    if node not in group.nodes and mac.reads(dtype) and whole and inner == 1:
        return k.tensor(node)
    padded = (*shape[:-1], (depth + mac.depth - 1) // mac.depth * mac.depth)
    buffer = k.workspace(product(padded), mac.left)
    copy = TensorView(buffer, padded, tuple(k.size(step) for step in contiguous(padded)), mac.left)
    flip = mac.flip(dtype)

    def body(index: list[Expr]) -> None:
        value = At(k, group.nodes)(node, index)
        if dtype != mac.left:
            value = T.cast(T.cast(value, "int32") - flip, mac.left)
        copy.store(index, value)

    if mac.left == BFLOAT16 and padded != shape:  # whatever lies there, times nought, may be NaN
        last = k.size(padded[-1] - 1)
        nest(k, shape[:-1], lambda index: copy.store([*index, last], constant(0, mac.left)))
    nest(k, shape, body, k.isa.lanes("float32"))
    return copy
