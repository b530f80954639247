"""Convolutions by AMX tiles over channels-last images (implicit GEMM).

Neighbouring rows of a tile must lie evenly in memory. So tiles walk through an image in one of three ways, over the
image as it lies (with its padding around it) or over a copy, whichever takes fewer cycles:

whole    a kernel of one pixel and no padding: all pixels of the batch follow each other.
flat     tiles run across the ends of image rows, and what they compute there is dropped. A stride splits the image
         into phases, in each of which a tap reads consecutive pixels: a copy.
by rows  tiles step by the stride through one image row: for few channels, of which a whole kernel row is one run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.geometry import CONVOLUTIONS, Geometry
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer
from graphc.backends.tvm.loops import unflatten
from graphc.backends.tvm.operations import arguments, dtype_of, is_stored, name_of, rank_of, shape_of
from graphc.backends.tvm.pointwise import POINTWISE
from graphc.backends.tvm.sizes import product, simplify
from graphc.backends.tvm.templates.amx_image import Copy
from graphc.backends.tvm.templates.amx_product import emit_tiles
from graphc.backends.tvm.templates.amx_tile import LANES, ROWS, Tiles, overread, refusal, tiles_for
from graphc.backends.tvm.templates.convolution import has_halo
from graphc.backends.tvm.templates.register_tile import Product, store_result
from graphc.backends.tvm.templates.right_operand import RightOperand
from graphc.tensor_type import Size

NAME = "convolution by AMX"
OPERATORS = CONVOLUTIONS
# Bytes that a core copies in a cycle: a load and a store of 64, and what it takes to find them.
COPIED_BYTES = 16


def matches(group: Group, isa: InstructionSet) -> str | None:
    anchor = group.anchor
    if anchor is None or name_of(anchor) not in OPERATORS:
        return "no convolution"
    if rank_of(arguments(anchor)["weight"]) not in (3, 4):
        return "only convolutions over one or two dimensions"
    g = Geometry.of(anchor)
    if not is_stored(g.weight) or g.weight in group.nodes or g.groups != 1 or g.spread != (1, 1):
        return "transposed, groups of channels, or a weight that is an activation"
    if min(g.before) < 0:
        return "padding that crops"
    if not all(isinstance(size, int) for size in (g.channels, *g.image, *g.result)):
        return "an image of dynamic size"
    reason = refusal(isa, dtype_of(g.x), int(g.result[0]) * int(g.result[1]))
    if reason is None and not any(_fits(g, joined) for joined in (False, True)):
        return "bfloat16 channels that end inside of a tile's row"
    return reason


def _fits(g: Geometry, joined: bool) -> bool:
    """Whether what tiles read behind a run does no harm: it meets zeros on the right, but NaN stays NaN."""
    tiles, run = tiles_for(dtype_of(g.x), g.filters), g.channels * (g.kernel[1] if joined else 1)
    return tiles.is_integer or run % tiles.unit == 0


@dataclass(frozen=True)
class Walk:
    """How tiles go through the image. `joined`: one run of elements a kernel row, rather than one a tap."""

    batch: list[Size]
    height: int
    width: Size
    pitch: int
    line: int | None
    joined: bool
    left: Callable[[list[Expr], Expr, list[Expr]], Expr]  # (batch, row, tap) -> element
    copy: Copy | None = None

    def cycles(self, k: KernelBuilder, g: Geometry, tiles: Tiles) -> int:
        """What the multiplications take, and the copy."""
        run, taps = (g.kernel[1] * g.channels, g.kernel[0]) if self.joined else (g.channels, g.kernel[0] * g.kernel[1])
        rows = self.width if self.line is None else (self.height - 1) * self.line + self.width
        products = (rows + (ROWS - 1)) // ROWS * (taps * -(-run // tiles.unit) * -(-g.filters // LANES))
        copied = product([g.batch, g.channels, *self.copy.pixels]) // COPIED_BYTES if self.copy else 0
        return k.ranges.maximum(simplify(product([*self.batch, products]) * 16 + copied))


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.core
    g = Geometry.of(anchor)
    tiles = tiles_for(dtype_of(g.x), g.filters)
    possible = [walk for walk in walks(group, k, g, tiles) if _fits(g, walk.joined)]
    walk = min(possible, key=lambda walk: walk.cycles(k, g, tiles))
    taps = [g.kernel[0], 1 if walk.joined else g.kernel[1]]
    run = g.channels * (g.kernel[1] if walk.joined else 1)

    def element(matrix: Any, n: Any, tap: Any, j: Any) -> list[Any]:
        row, column = (tap, j // g.channels) if walk.joined else (tap // g.kernel[1], tap % g.kernel[1])
        channel = j % g.channels if walk.joined else j
        index = [n, channel + matrix * 0, row, column]
        return index if rank_of(anchor) == 4 else [*index[:2], column]

    right = RightOperand(g.weight, 1, g.filters, taps[0] * taps[1], run, element, f"convolution {walk.joined} False")
    weight = right.packed(k, tiles)
    correction = right.correction(k, g.bias, -g.zero)
    extents = [k.size(g.batch), integer(int(g.result[0])), integer(int(g.result[1]))]
    in_line = pixels_in_line(group, k)
    if in_line and walk.line == walk.width:  # all pixels of an image are one line
        walk = replace(walk, height=1, width=walk.height * walk.width, line=None)

    def store(batch: list[Expr], y: Expr, x: Expr, n: Expr, total: Expr) -> None:
        if walk.batch:
            number, row, column = batch[0], batch[1] if len(batch) > 1 else y, x
        else:
            number, row, column = [integer(0), integer(0), x] if in_line else unflatten(x, extents)
        value = total if correction is None else total + correction(n)
        store_result(group, k, [number, n, row, column] if rank_of(anchor) == 4 else [number, n, column], value)

    memory: tirx.Buffer
    if walk.copy is None:
        memory = k.tensor(g.x).buffer
        k.overread(beyond(k, walk, tiles, run))
    else:
        memory = walk.copy.emit(group, k, g, tiles.left, beyond(k, walk, tiles, run))
    shape = Product(
        walk.batch,
        walk.height,
        walk.width,
        g.filters,
        taps,
        run,
        lambda batch, y, x, tap: walk.left(batch, x, tap),
        lambda batch: integer(0),
        store,
        integer(walk.pitch),
        walk.line,
    )
    emit_tiles(k, tiles, memory, weight, shape)


def beyond(k: KernelBuilder, walk: Walk, tiles: Tiles, run: int) -> int:
    """Bytes behind the image that tiles may read."""
    rows = walk.width if walk.line is None else (walk.height - 1) * walk.line + walk.width
    return overread(k, tiles, rows, run, walk.pitch)


def pixels_in_line(group: Group, k: KernelBuilder) -> bool:
    """Whether every image of the group holds its pixels, of all the batch, one after the other."""
    output = group.output
    inside = group.nodes[group.nodes.index(group.anchor) + 1 :]
    images = [value for value in (output, *group.inputs) if shape_of(value) == shape_of(output)]
    others = [
        value
        for node in inside
        for value in node.all_input_nodes
        if value not in group.nodes and shape_of(value) != shape_of(output) and rank_of(value) > 1
    ]
    if others or not all(name_of(node) in POINTWISE for node in group.nodes if node is not group.anchor):
        return False
    for value in images:
        strides, shape = k.strides(value), shape_of(value)
        dims = [0, *range(2, len(shape))]
        if any(simplify(strides[b] * shape[b] - strides[a]) != 0 for a, b in pairwise(dims)):
            return False
    return True


def walks(group: Group, k: KernelBuilder, g: Geometry, tiles: Tiles) -> list[Walk]:
    """Every way through the image that gives the right result."""
    c, joined = g.channels, g.dilation[1] == 1
    height, width = int(g.result[0]), int(g.result[1])
    found = []
    if g.x not in group.nodes and (not g.needs_padding or has_halo(k, g)) and k.strides(g.x)[1] == 1:
        batch, _, *rest = k.strides(g.x)
        row, column = int(rest[0]) if len(rest) == 2 else int(g.image[1]) * c, int(rest[-1])
        place = (batch, row, column, -g.before[0] * row - g.before[1] * column)
        if g.kernel == g.stride == (1, 1) and column == c and row == width * c and batch == row * height:
            found.append(Walk([], 1, g.batch * (height * width), c, None, True, lambda batch, x, tap: x * c))
        elif g.stride == (1, 1) and column == c and row % c == 0:
            found.append(_walk_flat(k, g, place, joined))
        if column == c or not joined:
            found.append(_walk_by_rows(k, g, place, joined))
        found = [
            walk for walk in found if k.may_overread(g.x, beyond(k, walk, tiles, g.kernel[1] * c if joined else c))
        ]
    lines, columns = int(g.padded[0]), int(g.padded[1])
    rows = Copy((1, 1), lines, columns)
    found.append(_walk_by_rows(k, g, (lines * columns * c, columns * c, c, 0), joined, rows))
    phases = Copy.in_phases(g)
    (down, across), (y_step, x_step) = g.stride, g.dilation

    def left(batch: list[Expr], x: Expr, tap: list[Expr]) -> Expr:
        y_tap, x_tap = tap[0] * y_step, tap[1] * x_step
        phase = T.truncmod(y_tap, integer(down)) * across + T.truncmod(x_tap, integer(across))
        line = (batch[0] * (down * across) + phase) * phases.lines + T.truncdiv(y_tap, integer(down))
        return (line * phases.columns + T.truncdiv(x_tap, integer(across)) + x) * c

    found.append(Walk([g.batch], height, width, c, phases.columns, joined and across == 1, left, phases))
    return found


Place = tuple[Size, int, int, int]  # strides of the batch, rows and columns, and where the first tap begins


def _walk_flat(k: KernelBuilder, g: Geometry, place: Place, joined: bool) -> Walk:
    image, row, column, origin = place

    def left(batch: list[Expr], x: Expr, tap: list[Expr]) -> Expr:
        start = tap[0] * (g.dilation[0] * row) + (tap[1] * g.dilation[1] + x) * column
        return batch[0] * k.size(image) + start + origin

    return Walk([g.batch], int(g.result[0]), int(g.result[1]), column, row // column, joined, left)


def _walk_by_rows(k: KernelBuilder, g: Geometry, place: Place, joined: bool, copy: Copy | None = None) -> Walk:
    image, row, column, origin = place

    def left(batch: list[Expr], x: Expr, tap: list[Expr]) -> Expr:
        y = batch[1] * g.stride[0] + tap[0] * g.dilation[0]
        return batch[0] * k.size(image) + y * row + (x * g.stride[1] + tap[1] * g.dilation[1]) * column + origin

    step = g.stride[1] * column
    return Walk([g.batch, g.result[0]], 1, int(g.result[1]), step, None, joined, left, copy)
