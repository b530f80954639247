"""Convolutions, float and integer, as products of register tiles over channels-last images (implicit GEMM).

The input is first copied into a padded image, unless it can be read as it lies: then the taps of one kernel row are one
run of neighbouring elements. A transposed convolution is a plain one over its input spread out by the stride, with the
kernel turned round. Each group of channels is a matrix of its own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import sympy
import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.evaluate import At, constant
from graphc.backends.tvm.geometry import CONVOLUTIONS, Geometry
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, TensorView, integer
from graphc.backends.tvm.loops import PARALLEL_WORK, unflatten, vector_loop
from graphc.backends.tvm.operations import arguments, dtype_of, is_stored, name_of, rank_of, shape_of
from graphc.backends.tvm.sizes import contiguous, product, simplify
from graphc.backends.tvm.templates import multiply_accumulate
from graphc.backends.tvm.templates.multiply_accumulate import MultiplyAccumulate
from graphc.backends.tvm.templates.register_tile import Product, emit_product, narrowed, store_result
from graphc.backends.tvm.templates.right_operand import RightOperand

NAME = "convolution"
OPERATORS = CONVOLUTIONS


def matches(group: Group, isa: InstructionSet) -> str | None:
    anchor = group.anchor
    if anchor is None or name_of(anchor) not in OPERATORS:
        return "no convolution"
    args = arguments(anchor)
    if rank_of(args["weight"]) not in (3, 4):
        return "only convolutions over one or two dimensions"
    geometry = Geometry.of(anchor)
    if not isinstance(geometry.channels, int) or min(geometry.before) < 0:
        return "dynamic channels, or a transposed convolution that crops"
    if name_of(anchor) == "aten.convolution.default":
        return None if dtype_of(args["input"]) == "float32" else f"convolution of {dtype_of(geometry.x)}"
    if not is_stored(geometry.weight):
        return "integer convolution by an activation"
    return None


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.core
    g = Geometry.of(anchor)
    floating = name_of(anchor) == "aten.convolution.default"
    columns, channels = g.filters // g.groups, g.channels // g.groups
    mac = multiply_accumulate.floating(k.isa, dtype_of(g.x)) if floating else multiply_accumulate.integer(k.isa)
    # Few filters, as pruning leaves them, fill a short vector.
    mac = narrowed(mac, columns).narrowed_to(1 << (columns - 1).bit_length())
    # One run a kernel row, where the elements of neighbouring taps are neighbours; else one a tap.
    joined = g.groups == 1 and g.dilation[1] == 1
    taps = [g.kernel[0], 1 if joined else g.kernel[1]]
    run = channels * (g.kernel[1] if joined else 1)
    image = source_image(group, k, g, mac, joined, run)
    transposed = floating and arguments(anchor)["transposed"]

    def element(matrix: Any, n: Any, tap: Any, j: Any) -> list[Any]:
        row, column = (tap, j // channels) if joined else (tap // g.kernel[1], tap % g.kernel[1])
        channel = j % channels if joined else j
        if transposed:
            row, column = g.kernel[0] - 1 - row, g.kernel[1] - 1 - column
            index = [matrix * channels + channel, n, row, column]
        else:
            index = [matrix * columns + n, channel, row, column]
        return index if rank_of(anchor) == 4 else [*index[:2], column]

    kind = f"convolution {joined} {transposed}"
    right = RightOperand(g.weight, g.groups, columns, taps[0] * taps[1], run, element, kind)
    weight = right.packed(k, mac)
    shift = 0 if floating else mac.flip(dtype_of(g.x)) - g.zero
    first = right.initial(k, g.bias, shift, mac.width)
    correction = None if first is not None else right.correction(k, g.bias, shift)

    def initial(batch: list[Expr], n: Expr, count: int) -> Expr:
        assert first is not None
        return first(batch[1] * columns + n, count)

    def left(batch: list[Expr], y: Expr, x: Expr, tap: list[Expr]) -> Expr:
        row, column = y * g.stride[0] + tap[0] * g.dilation[0], x * g.stride[1] + tap[1] * g.dilation[1]
        return image.offset([batch[0], batch[1] * channels, row, column])

    def store(batch: list[Expr], y: Expr, x: Expr, n: Expr, total: Expr) -> None:
        channel = batch[1] * columns + n
        value = total if correction is None else total + correction(channel)
        index = [batch[0], channel, y, x] if rank_of(anchor) == 4 else [batch[0], channel, x]
        store_result(group, k, index, value)

    shape = Product([g.batch, g.groups], *g.result, columns, taps, run, left, lambda batch: batch[1], store)
    if first is not None:
        shape = replace(shape, initial=initial)
    if k.isa.target.arch == "arm64" and all(isinstance(size, int) for size in g.result):
        shape = shape.in_line(k)
    emit_product(k, mac, image.buffer, weight, shape)


def source_image(
    group: Group, k: KernelBuilder, g: Geometry, mac: MultiplyAccumulate, joined: bool, run: int
) -> TensorView:
    """The image that the kernel slides over, [N, C, H, W]: the input as it lies, or a padded channels-last copy."""
    strides = k.strides(g.x)
    batch, channel, *_, column = strides
    row = strides[2] if len(strides) == 4 else 0
    fits = mac.reads(dtype_of(g.x)) and run % mac.depth == 0 and (channel == 1 or (mac.depth == 1 and not joined))
    in_line = not joined or g.kernel[1] == 1 or column == g.channels
    at_hand = not g.needs_padding or has_halo(k, g)
    if g.x not in group.nodes and at_hand and channel == 1 and fits and in_line:
        view = k.tensor(g.x)
        steps = tuple(k.size(s) for s in (batch, channel, row, column))
        origin = -g.before[0] * row - g.before[1] * column
        return TensorView(view.buffer, shape_of(g.x), steps, view.dtype, origin)
    shape = (g.batch, g.channels, *g.padded)
    steps = contiguous(shape, (0, 2, 3, 1))
    buffer = k.workspace(product(shape), mac.left)
    copy = TensorView(buffer, shape, tuple(k.size(step) for step in steps), mac.left)
    pad_image(group, k, g, copy, mac.flip(dtype_of(g.x)))
    return copy


def has_halo(k: KernelBuilder, g: Geometry) -> bool:
    """Whether everything that the kernel visits lies in memory around the input."""
    halo = k.halo(g.x)
    if halo is None or halo.fill != g.zero or g.spread != (1, 1):
        return False
    room = [sum(sizes) for sizes in zip(g.before, g.image, halo.after, strict=True)]
    reached = all(visited <= size for visited, size in zip(g.padded, room, strict=True))
    return reached and all(size <= held for size, held in zip(g.before, halo.before, strict=True))


def pad_image(group: Group, k: KernelBuilder, g: Geometry, target: TensorView, flip: int) -> None:
    """Copy the input into the middle of `target`, converted to its type less `flip`, and fill the rest with nought."""
    height, width = (k.size(size) for size in g.padded)
    pitch = width * g.channels
    lanes = k.isa.lanes(target.dtype)
    nought = constant(g.zero - flip, target.dtype)
    # Columns of the input that lie inside the padded image: strides may leave some of its last unread.
    room = simplify((g.padded[1] - g.before[1] + g.spread[1] - 1) // g.spread[1])
    columns = room if k.ranges.minimum(g.image[1]) >= k.ranges.maximum(room) else sympy.Min(g.image[1], room)
    dense = g.x not in group.nodes and k.strides(g.x)[1] == 1 and k.strides(g.x)[-1] == g.channels and g.spread[1] == 1

    def convert(value: Expr) -> Expr:
        return (
            value
            if flip == 0 and dtype_of(g.x) == target.dtype
            else T.cast(T.cast(value, "int32") - flip, target.dtype)
        )

    def fill(start: Expr, count: Expr | int) -> None:
        vector_loop(k, count, lanes, lambda i: T.buffer_store(target.buffer, nought, [start + i]))

    def source(n: Expr, c: Expr, y: Expr, x: Expr) -> Expr:
        index = [n, c, y, x] if rank_of(g.x) == 4 else [n, c, x]
        return convert(At(k, group.nodes)(g.x, index))

    def copy_row(n: Expr, y: Expr, start: Expr) -> None:
        margin = g.before[1] * g.channels
        if g.spread[1] == 1:
            fill(start, margin)
            used = k.size(columns) * g.channels
            fill(start + margin + used, pitch - margin - used)
        else:
            fill(start, pitch)
        if dense:
            view = k.tensor(g.x)
            first = view.offset([n, integer(0), y, integer(0)] if rank_of(g.x) == 4 else [n, integer(0), integer(0)])
            count = columns * g.channels if isinstance(columns, int) else k.size(columns) * g.channels

            def move(i: Expr) -> None:
                T.buffer_store(target.buffer, convert(view.load_at(first + i)), [start + margin + i])

            vector_loop(k, count, lanes, move)
            return
        with k.loop(k.size(columns)) as x:
            base = start + margin + x * (g.spread[1] * g.channels)

            def put(c: Expr) -> None:
                T.buffer_store(target.buffer, source(n, c, y, x), [base + c])

            vector_loop(k, g.channels, lanes if k.strides(g.x)[1] == 1 else 1, put)

    parallel = k.ranges.maximum(product(target.shape)) >= PARALLEL_WORK
    with k.loop(k.size(g.batch) * height, parallel) as flat:
        n, row = unflatten(flat, [k.size(g.batch), height])
        below = row - g.before[0]
        start = flat * pitch
        inside = T.And(below >= 0, below < k.size(g.image[0]) * g.spread[0])
        if g.spread[0] != 1:
            inside = T.And(inside, tirx.EQ(below % g.spread[0], integer(0)))
        with T.If(inside):
            with T.Then():
                copy_row(n, T.Bind(below // g.spread[0]), start)
            with T.Else():
                fill(start, pitch)
