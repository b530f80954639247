"""Scaled dot-product attention: softmax(scale q k^T + mask) v, without a matrix of scores in memory.

Keys and values are packed once; then each thread takes a tile of queries, keeps its scores in a small buffer, and makes
both products by register tiles. Grouped queries share the packed keys and values of their head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import tvm.tirx as tirx
from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import brain_float, scalars
from graphc.backends.tvm import mathematics as m
from graphc.backends.tvm.evaluate import At, broadcast, constant
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, TensorView, integer, store_vector, vector
from graphc.backends.tvm.loops import PARALLEL_WORK, unflatten
from graphc.backends.tvm.operations import BFLOAT16, arguments, dtype_of, name_of, shape_of
from graphc.backends.tvm.reducers import SUM, Reducer, by_row, lowest
from graphc.backends.tvm.sizes import product
from graphc.backends.tvm.templates import multiply_accumulate
from graphc.backends.tvm.templates.matrix_product import left_view
from graphc.backends.tvm.templates.multiply_accumulate import MultiplyAccumulate
from graphc.backends.tvm.templates.register_tile import (
    Product,
    emit_tile,
    narrowed,
    packed_elements,
    store_result,
    strips,
    tile_shape,
)
from graphc.backends.tvm.templates.right_operand import RightOperand
from graphc.tensor_type import Size

NAME = "attention"
OPERATORS = ("aten.scaled_dot_product_attention.default",)


def matches(group: Group, isa: InstructionSet) -> str | None:
    anchor = group.anchor
    if anchor is None or name_of(anchor) not in OPERATORS:
        return "no attention"
    args = arguments(anchor)
    if dtype_of(anchor) not in ("float32", BFLOAT16):
        return f"attention of {dtype_of(anchor)}"
    if args["dropout_p"] != 0.0:
        return "dropout in attention; export the model in eval() mode"
    if any(value in group.nodes for value in (args["query"], args["key"], args["value"])):
        return "operands computed inside the group"
    return None


# Scores of one tile, in bytes: they live on the stack of the thread, which some C libraries keep at 128 kB.
SCORES = 1 << 16


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.core
    args = arguments(anchor)
    query, key, value = args["query"], args["key"], args["value"]
    *outer, length, depth = shape_of(query)
    positions, width = shape_of(key)[-2], shape_of(value)[-1]
    kind = dtype_of(query)
    plain = multiply_accumulate.floating(k.isa, kind)
    most = k.ranges.maximum(positions)
    rows = max(1, min(plain.rows, SCORES // (4 * most)))
    plain = replace(plain, rows=rows)
    toward_keys, toward_values = narrowed(plain, most), narrowed(plain, k.ranges.maximum(width))

    source = left_view(group, k, query, plain)
    keys = _operand(k, key, len(outer), shape_of(query), "keys", transposed=True)
    values = _operand(k, value, len(outer), shape_of(query), "values", transposed=False)
    packed_keys, packed_values = _packed_keys(k, keys, toward_keys), _packed_values(k, values, toward_values)

    given = args["scale"]
    root = T.float32(1.0) / T.sqrt(T.cast(k.size(depth), "float32")) if given is None else T.float32(given)
    mask: fx.Node | None = args["attn_mask"]
    count = k.size(positions)
    row_length = positions if isinstance(positions, int) else count
    # Weights of bfloat16 come in whole groups: nought fills the last one.
    pitch = most + most % plain.depth
    _, tile = tile_shape(1, k.ranges.maximum(length), rows)
    whole = k.ranges.minimum(length) >= tile
    sizes = [k.size(size) for size in outer]
    work = k.ranges.maximum(product([*outer, length, positions, depth]))

    def tile_of_queries(batch: list[Expr], first: Expr, columns: int) -> None:
        """Queries [first, first + columns) of one head: scores, their exponentials, and the weighted sum of values."""
        scores = k.local(columns * pitch, "float32")
        weights = scores if kind == "float32" else k.local(columns * pitch, kind)

        def query_row(_: list[Expr], y: Expr, x: Expr, tap: list[Expr]) -> Expr:
            index = [integer(0) if size == 1 else i for size, i in zip(outer, batch, strict=True)]
            return source.offset([*index, x, integer(0)])

        def store_score(_: list[Expr], y: Expr, x: Expr, n: Expr, total: Expr) -> None:
            score = total * root
            if args["is_causal"]:
                score = T.Select(n <= x, score, T.float32(-math.inf))
            if mask is not None:
                item = At(k, ())(mask, broadcast([*batch, x, n], mask))
                truth = dtype_of(mask) == "bool"
                score = T.Select(item, score, T.float32(-math.inf)) if truth else score + item
            T.buffer_store(scores, score, [(x - first) * pitch + n])

        to_keys = Product([], 1, 1, positions, [1], depth, query_row, lambda _: keys.matrix(batch), store_score)
        _panels(k, toward_keys, source.buffer, packed_keys, to_keys, first, columns)
        factors = k.local(columns, "float32")
        with k.loop(columns) as row:
            if weights is not scores:
                T.buffer_store(weights, constant(0, kind), [row * pitch + count - 1 + count % 2])
            T.buffer_store(factors, _exponentials(k, scores, weights, row * pitch, row_length), [row])

        def score_row(_: list[Expr], y: Expr, x: Expr, tap: list[Expr]) -> Expr:
            return (x - first) * pitch

        def store(_: list[Expr], y: Expr, x: Expr, n: Expr, total: Expr) -> None:
            total = total * factors[x - first]
            store_result(group, k, [*batch, x, n], total if kind == "float32" else brain_float.narrow(total))

        to_values = Product([], 1, 1, width, [1], positions, score_row, lambda _: values.matrix(batch), store)
        _panels(k, toward_values, weights, packed_values, to_values, first, columns)

    for number, left_edge, columns in strips(k, length, tile, whole):
        extents = [*sizes, number]
        volume = integer(1)
        for extent in extents:
            volume = volume * extent
        with k.loop(volume, parallel=work >= PARALLEL_WORK) as flat:
            *batch, strip = unflatten(flat, extents)
            tile_of_queries(batch, T.Bind(left_edge(strip)), columns)


# Where a score is NaN, so are its exponential and all that it goes into: the maximum need not show it.
_TOP = Reducer(lowest, T.max)


def _exponentials(k: KernelBuilder, scores: tirx.Buffer, weights: tirx.Buffer, start: Expr, count: int | Expr) -> Expr:
    """Write e^(score - max) of a row into `weights`; returns 1 / their sum, 0 where every score is -infinity."""
    lanes = k.isa.lanes("float32")
    top = by_row(k, [count], _TOP, "float32", lambda index: scores[start + index[0]], lanes)
    shift = T.Bind(T.max(T.float32(-3.0e38), top))

    def weight(index: list[Expr]) -> Expr:
        at = start + index[0]
        value = T.Bind(m.exp_of_negative(scores[at] - shift))
        T.buffer_store(weights, value if weights is scores else brain_float.narrow(value), [at])
        return value

    total = by_row(k, [count], SUM, "float32", weight, lanes)
    return T.Select(
        total > T.float32(0.0), T.float32(1.0) / total, T.Select(scalars.is_nan(total), total, T.float32(0.0))
    )


@dataclass(frozen=True)
class _Operand:
    """Keys or values: what to pack, which packed matrix belongs to a position of the batch, and how many positions of
    their own the matrices have."""

    operand: RightOperand
    matrix: Callable[[list[Expr]], Expr]
    batch: list[Size]


def _operand(
    k: KernelBuilder, node: fx.Node, batch_rank: int, query_shape: tuple[Size, ...], kind: str, transposed: bool
) -> _Operand:
    shape = shape_of(node)
    batch = shape[:-2]
    offset = batch_rank - len(batch)
    kept = [d for d in range(len(batch)) if batch[d] != 1 and k.strides(node)[d] != 0]

    def matrix(position: list[Expr]) -> Expr:
        flat = integer(0)
        for d in kept:
            size, queries = batch[d], query_shape[offset + d]
            # Grouped queries: neighbouring heads share keys and values.
            shared = 1 if size == queries else queries // size
            flat = flat * k.size(size) + position[offset + d] // k.size(shared)
        return flat

    def element(number: Any, n: Any, tap: Any, j: Any) -> list[Any]:
        position: list[Any] = [number * 0] * len(batch)
        for d in reversed(kept):
            size = batch[d] if isinstance(batch[d], int) else k.size(batch[d])
            position[d], number = number % size, number // size
        return [*position, n, j] if transposed else [*position, j, n]

    columns, run = (shape[-2], shape[-1]) if transposed else (shape[-1], shape[-2])
    operand = RightOperand(node, product([batch[d] for d in kept]), columns, 1, run, element, f"{kind} {kept}")
    return _Operand(operand, matrix, [batch[d] if d in kept else 1 for d in range(len(batch))])


def _packed_keys(k: KernelBuilder, keys: _Operand, mac: MultiplyAccumulate) -> tirx.Buffer:
    """Keys as the right operand, group by group of a key's elements where they lie so."""
    node, run = keys.operand.node, keys.operand.run
    if k.at_load(node) or k.strides(node)[-1] != 1 or not isinstance(run, int) or run % mac.depth:
        return keys.operand.packed(k, mac)

    def pack(view: TensorView, index: list[Expr], panel: Expr, target: tirx.Buffer, start: Expr) -> None:
        with k.loop(mac.width) as lane:
            n = T.min(panel * mac.width + lane, k.size(keys.operand.columns) - 1)  # what stands behind is not used
            source = T.Bind(view.offset([*index, n, integer(0)]))
            with k.loop(run // mac.depth) as step:
                at = start + (step * mac.width + lane) * mac.depth
                with k.vectorized(mac.depth) as part:
                    T.buffer_store(target, view.buffer[source + step * mac.depth + part], [at + part])

    return _pack(k, keys, mac, run, pack)


def _packed_values(k: KernelBuilder, values: _Operand, mac: MultiplyAccumulate) -> tirx.Buffer:
    """Values as the right operand, a vector of them at a time where they lie so; pairs of bfloat16 are interleaved."""
    node, columns, count = values.operand.node, values.operand.columns, values.operand.run
    if k.at_load(node) or k.strides(node)[-1] != 1 or not isinstance(columns, int) or columns % mac.width:
        return values.operand.packed(k, mac)

    def pack(view: TensorView, index: list[Expr], panel: Expr, target: tirx.Buffer, start: Expr) -> None:
        with k.loop((k.size(count) + (mac.depth - 1)) // mac.depth) as step:
            for v in range(mac.vectors):
                n = panel * mac.width + v * mac.lanes
                at = start + (step * mac.vectors + v) * mac.lanes * mac.depth
                first = vector(view.buffer, view.offset([*index, step * mac.depth, n]), mac.lanes)
                if mac.depth == 1:
                    store_vector(target, at, mac.lanes, first)
                    continue
                second = T.Bind(T.min(step * 2 + 1, k.size(count) - 1))
                kind = f"uint32x{mac.lanes}"
                high = T.cast(vector(view.buffer, view.offset([*index, second, n]), mac.lanes), kind)
                shifted = T.shift_left(high, T.broadcast(T.uint32(16), mac.lanes))
                kept = T.Select(second > step * 2, T.uint32(0xFFFF0000), T.uint32(0))  # beyond the last value: nought
                shifted = T.bitwise_and(shifted, T.broadcast(kept, mac.lanes))
                pair = T.bitwise_or(T.cast(first, kind), shifted)
                store_vector(target, at, 2 * mac.lanes, T.reinterpret(f"uint16x{2 * mac.lanes}", pair))

    return _pack(k, values, mac, count, pack)


def _pack(
    k: KernelBuilder,
    what: _Operand,
    mac: MultiplyAccumulate,
    run: Size,
    pack: Callable[[TensorView, list[Expr], Expr, tirx.Buffer, Expr], None],
) -> tirx.Buffer:
    """`pack(view, batch, panel, target, start)` for each panel of each matrix."""
    columns = what.operand.columns
    target = k.workspace(packed_elements(what.operand.matrices, columns, 1, run, mac), mac.right)
    view = k.tensor(what.operand.node)
    steps = (k.size(run) + (mac.depth - 1)) // mac.depth
    extents = [*(k.size(size) for size in what.batch), (k.size(columns) + (mac.width - 1)) // mac.width]
    volume = integer(1)
    for extent in extents:
        volume = volume * extent
    work = k.ranges.maximum(product([*what.batch, columns, run]))
    with k.loop(volume, parallel=work >= PARALLEL_WORK) as flat:
        *index, panel = unflatten(flat, extents)
        pack(view, index, panel, target, T.Bind(flat * steps * (mac.width * mac.depth)))
    return target


def _panels(
    k: KernelBuilder,
    mac: MultiplyAccumulate,
    left: tirx.Buffer,
    right: tirx.Buffer,
    shape: Product,
    first: Expr,
    rows: int,
) -> None:
    """One tile of rows times every panel of a packed matrix."""
    steps = (k.size(shape.run) + (mac.depth - 1)) // mac.depth
    panels = (k.size(shape.columns) + (mac.width - 1)) // mac.width
    with k.loop(panels) as panel:
        base = (shape.matrix([]) * panels + panel) * steps * (mac.width * mac.depth)
        emit_tile(k, mac, left, right, shape, [], panel, base, steps, (integer(0), first), (1, rows))
