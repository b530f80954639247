"""Integer convolutions by AMX tiles over channels-last images (implicit GEMM).

Neighbouring rows of a tile must lie evenly in memory, so an image is read in one of three ways:

as it lies   no padding, stride 1: pixels follow each other. A kernel of one pixel takes the batch for one image.
flat         a padded copy, split by the stride into its phases, in which each tap reads consecutive pixels. Tiles run
             across the ends of image rows, and what they compute there is dropped: one pixel a row, for the padding at
             the right is that at the left of the next row.
row by row   a padded copy in which tiles step by the stride: for few channels, where a kernel row is one run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.evaluate import At, constant
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer
from graphc.backends.tvm.loops import PARALLEL_WORK, unflatten, vector_loop
from graphc.backends.tvm.operations import arguments, dtype_of, is_stored, name_of, rank_of
from graphc.backends.tvm.sizes import product
from graphc.backends.tvm.templates.amx_tile import ROWS, Tiles, emit_tiles, integer_tiles, may_overread, refusal
from graphc.backends.tvm.templates.convolution import Geometry
from graphc.backends.tvm.templates.register_tile import Product, store_result
from graphc.backends.tvm.templates.right_operand import RightOperand
from graphc.tensor_type import Size

NAME = "convolution by AMX"
OPERATORS = ("graphc.integer_convolution.default",)


def matches(group: Group, isa: InstructionSet) -> str | None:
    anchor = group.anchor
    if anchor is None or name_of(anchor) not in OPERATORS:
        return "no integer convolution"
    if rank_of(arguments(anchor)["weight"]) not in (3, 4):
        return "only convolutions over one or two dimensions"
    g = Geometry.of(anchor)
    if not is_stored(g.weight) or g.groups != 1:
        return "groups of channels, or a weight that is an activation"
    if not all(isinstance(size, int) for size in (g.channels, *g.image, *g.result)):
        return "an image of dynamic size"
    return refusal(isa, dtype_of(g.x), int(g.result[0]) * int(g.result[1]))


@dataclass(frozen=True)
class Image:
    """The left operand. Rows of tiles are pixels of the result in `width` columns, of which `g.result` are wanted."""

    buffer: tirx.Buffer
    batch: list[Size]
    rows: Size
    pitch: int
    joined: bool  # one run a kernel row rather than one a tap
    left: Callable[[list[Expr], Expr, list[Expr]], Expr]  # (batch, row, tap) -> element
    pixel: Callable[[list[Expr], Expr], list[Expr]]  # (batch, row) -> image, y, x
    kept: Callable[[Expr], Expr] | None = None


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.anchor
    assert anchor is not None
    g = Geometry.of(anchor)
    tiles = integer_tiles(dtype_of(g.x)).narrowed(g.filters)
    image = as_it_lies(group, k, g, tiles) or copied(group, k, g, tiles)
    taps = [g.kernel[0], 1 if image.joined else g.kernel[1]]
    run = g.channels * (g.kernel[1] if image.joined else 1)

    def element(matrix: Any, n: Any, tap: Any, j: Any) -> list[Any]:
        row, column = (tap, j // g.channels) if image.joined else (tap // g.kernel[1], tap % g.kernel[1])
        channel = j % g.channels if image.joined else j
        index = [n, channel + matrix * 0, row, column]
        return index if rank_of(anchor) == 4 else [*index[:2], column]

    right = RightOperand(g.weight, 1, g.filters, taps[0] * taps[1], run, element, f"convolution {image.joined} False")
    weight = right.packed(k, tiles)
    correction = right.correction(k, g.bias, -g.zero)

    def left(batch: list[Expr], y: Expr, x: Expr, tap: list[Expr]) -> Expr:
        return image.left(batch, x, tap)

    def store(batch: list[Expr], y: Expr, x: Expr, n: Expr, total: Expr) -> None:
        number, row, column = image.pixel(batch, x)
        value = total if correction is None else total + correction(n)
        store_result(group, k, [number, n, row, column] if rank_of(anchor) == 4 else [number, n, column], value)

    def matrix(batch: list[Expr]) -> Expr:
        return integer(0)

    pitch = integer(image.pitch)
    shape = Product(image.batch, 1, image.rows, g.filters, taps, run, left, matrix, store, pitch=pitch, kept=image.kept)
    emit_tiles(k, tiles, image.buffer, weight, shape)


def as_it_lies(group: Group, k: KernelBuilder, g: Geometry, tiles: Tiles) -> Image | None:
    """The input itself, where tiles can read it."""
    if g.x in group.nodes or g.before != (0, 0) or g.stride != (1, 1):
        return None
    height, width = int(g.result[0]), int(g.result[1])
    visited = g.padded
    if int(visited[0]) > int(g.image[0]) or int(visited[1]) > int(g.image[1]):
        return None
    batch_stride, channel, *rest = k.strides(g.x)
    columns, pixels = int(g.image[1]), int(g.image[0]) * int(g.image[1])
    even = [columns * g.channels, g.channels][-len(rest) :]
    if channel != 1 or rest != even or not (g.channels % tiles.unit == 0 or k.has_slack(g.x)):
        return None
    view = k.tensor(g.x)
    if g.kernel == (1, 1) and pixels == height * width and batch_stride == pixels * g.channels:
        rows: Size = g.batch * pixels
        if may_overread(k, rows):
            return None
        extents = [k.size(g.batch), integer(height), integer(width)]
        return Image(
            view.buffer,
            [],
            rows,
            g.channels,
            True,
            lambda batch, row, tap: row * g.channels,
            lambda batch, row: unflatten(row, extents),
        )
    rows = (height - 1) * columns + width
    if rows < ROWS:
        return None

    def left(batch: list[Expr], row: Expr, tap: list[Expr]) -> Expr:
        pixel = row + tap[0] * (g.dilation[0] * columns) + tap[1] * g.dilation[1]
        return batch[0] * k.size(batch_stride) + pixel * g.channels

    joined = g.dilation[1] == 1
    return Image(view.buffer, [g.batch], rows, g.channels, joined, left, *_flat(columns, width))


def _flat(columns: int, width: int) -> tuple[Any, Any]:
    """`pixel` and `kept` of rows that run through an image of `columns`, of which the first `width` are wanted."""

    def pixel(batch: list[Expr], row: Expr) -> list[Expr]:
        return [batch[0], T.truncdiv(row, integer(columns)), T.truncmod(row, integer(columns))]

    return pixel, None if columns == width else lambda row: T.truncmod(row, integer(columns)) < width


def copied(group: Group, k: KernelBuilder, g: Geometry, tiles: Tiles) -> Image:
    """A padded copy, flat or row by row, whichever takes fewer multiplications."""
    height, width = int(g.result[0]), int(g.result[1])
    flat = Copy.flat(g)
    narrow = Copy.row_by_row(g)

    def steps(taps: int, run: int) -> int:
        return taps * -(-run // tiles.unit)

    joined = g.dilation[1] == 1 and g.stride[1] == 1
    area = g.kernel[0] * g.kernel[1]
    by_tap = steps(g.kernel[0], g.kernel[1] * g.channels) if joined else steps(area, g.channels)
    rows = (height - 1) * flat.columns + width
    cost = -(-rows // ROWS) * by_tap
    by_row = height * -(-width // ROWS) * steps(g.kernel[0], g.kernel[1] * g.channels)
    c = g.channels
    if g.dilation[1] == 1 and by_row < cost:
        buffer = narrow.emit(group, k, g, tiles, 2 * ROWS * g.stride[1])

        def left_by_row(batch: list[Expr], row: Expr, tap: list[Expr]) -> Expr:
            y = batch[1] * g.stride[0] + tap[0] * g.dilation[0]
            return ((batch[0] * narrow.lines + y) * narrow.columns + row * g.stride[1]) * c

        return Image(
            buffer,
            [g.batch, height],
            width,
            g.stride[1] * c,
            True,
            left_by_row,
            lambda batch, row: [batch[0], batch[1], row],
        )
    buffer = flat.emit(group, k, g, tiles, 2 * ROWS)
    (down, across), (y_step, x_step) = g.stride, g.dilation

    def left(batch: list[Expr], row: Expr, tap: list[Expr]) -> Expr:
        y, x = tap[0] * y_step, tap[1] * x_step
        phase = T.truncmod(y, integer(down)) * across + T.truncmod(x, integer(across))
        line = (batch[0] * (down * across) + phase) * flat.lines + T.truncdiv(y, integer(down))
        return (line * flat.columns + T.truncdiv(x, integer(across)) + row) * c

    return Image(buffer, [g.batch], rows, c, joined, left, *_flat(flat.columns, width))


@dataclass(frozen=True)
class Copy:
    """A padded channels-last copy: [batch, phases down, phases across, lines, columns, channels]."""

    phases: tuple[int, int]
    lines: int
    columns: int

    @staticmethod
    def flat(g: Geometry) -> Copy:
        reach = [(taps - 1) * step // jump for taps, step, jump in zip(g.kernel, g.dilation, g.stride, strict=True)]
        lines, columns = int(g.result[0]) + reach[0], int(g.result[1]) + reach[1]
        if g.stride[1] == 1:  # the next line's left padding serves as the right one, behind the last line as well
            margin = g.before[1]
            columns = max(columns - margin, margin + min(int(g.image[1]), columns - margin))
            lines += margin > 0
        return Copy(g.stride, lines, columns)

    @staticmethod
    def row_by_row(g: Geometry) -> Copy:
        return Copy((1, 1), int(g.padded[0]), int(g.padded[1]))

    def emit(self, group: Group, k: KernelBuilder, g: Geometry, tiles: Tiles, slack: int) -> tirx.Buffer:
        """Write the copy, `slack` pixels before the end of its memory."""
        shape = (g.batch, *self.phases, self.lines, self.columns, g.channels)
        buffer = k.workspace(product(shape) + slack * g.channels, tiles.left)
        phases = [(down, across) for down in range(self.phases[0]) for across in range(self.phases[1])]
        used = {
            (y * g.dilation[0] % self.phases[0], x * g.dilation[1] % self.phases[1]) for y, x in np.ndindex(*g.kernel)
        }
        nought = constant(g.zero, tiles.left)
        lanes = k.isa.lanes(tiles.left)
        dense = g.x not in group.nodes and k.strides(g.x)[1] == 1 and k.strides(g.x)[-1] == g.channels

        def fill(start: Expr, pixels: int) -> None:
            vector_loop(k, pixels * g.channels, lanes, lambda i: T.buffer_store(buffer, nought, [start + i]))

        def line(n: Expr, y: Expr, start: Expr, across: int) -> None:
            """One line: columns first..last of it hold pixels of the image."""
            jump = self.phases[1]
            first = -(-(g.before[1] - across) // jump) if g.before[1] > across else 0
            last = min(self.columns, -(-(int(g.image[1]) + g.before[1] - across) // jump))
            fill(start, first)
            fill(start + last * g.channels, self.columns - last)
            x = first * jump + across - g.before[1]
            target = start + first * g.channels
            if jump == 1 and dense:
                view = k.tensor(g.x)
                source = view.offset(index(n, integer(0), y, integer(x)))
                vector_loop(
                    k,
                    (last - first) * g.channels,
                    lanes,
                    lambda i: T.buffer_store(buffer, view.buffer[source + i], [target + i]),
                )
                return
            with k.loop(last - first) as column:
                begin = target + column * g.channels
                vector_loop(
                    k,
                    g.channels,
                    lanes if k.strides(g.x)[1] == 1 else 1,
                    lambda c: T.buffer_store(
                        buffer, At(k, group.nodes)(g.x, index(n, c, y, x + column * jump)), [begin + c]
                    ),
                )

        def index(n: Expr, c: Expr, y: Expr, x: Expr) -> list[Expr]:
            return [n, c, y, x] if rank_of(g.x) == 4 else [n, c, x]

        parallel = k.ranges.maximum(product(shape)) >= PARALLEL_WORK
        with k.loop(k.size(g.batch) * self.lines, parallel) as flat:
            n, number = unflatten(flat, [k.size(g.batch), integer(self.lines)])
            for down, across in phases:
                if (down, across) not in used:
                    continue
                position = (n * self.phases[0] + down) * self.phases[1] + across
                start = T.Bind((position * self.lines + number) * (self.columns * g.channels))
                y = T.Bind(number * self.phases[0] + (down - g.before[0]))
                with T.If(T.And(y >= 0, y < int(g.image[0]))):
                    with T.Then():
                        line(n, y, start, across)
                    with T.Else():
                        fill(start, self.columns)
        return buffer
