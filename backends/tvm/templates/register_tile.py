"""Matrix products by register tiles: rows of the left operand times packed panels of the right one.

    out[batch, row, n] = epilogue(sum over tap and j of left[row(batch, row, tap) + j] * right[n, tap, j])

A tile of `rows` x `vectors` accumulators stays in registers through the whole sum (Goto & van de Geijn, Anatomy of
High-Performance Matrix Multiplication, 2008, of which this is the inner kernel). Rows form an image of height x width;
a convolution's taps are extra dimensions of the sum, so that no matrix of patches is ever built. The right operand is
packed as [matrix][panel][tap][step][width][depth], zeros where the shape does not fill a panel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.evaluate import At
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.kernel import AHEAD_BYTES, Expr, KernelBuilder, integer, store_vector
from graphc.backends.tvm.loops import PARALLEL_WORK, unflatten, vector_loop
from graphc.backends.tvm.sizes import product
from graphc.backends.tvm.templates.multiply_accumulate import MultiplyAccumulate
from graphc.tensor_type import Size

# A packed operand beyond this many bytes is read once, panel by panel, rather than once for each row of tiles.
RESIDENT_BYTES = 1 << 19


@dataclass(frozen=True)
class Product:
    """A matrix product. Sizes may be symbolic, `taps` are numbers.

    left(batch, y, x, tap): where the run of elements of one row and tap starts. matrix(batch): which right operand.
    store(batch, y, x, n, sum): takes one result, or, where `plain`, a vector of neighbouring columns, all of which
    exist, straight from the registers. For tiles, which read 16 rows at once: `pitch` elements lie between neighbouring
    rows on the left, and from one image row to the next it is `line` rows (None: there is one image row).
    initial(batch, n, count): what to add to the sums of `count` columns from n on, those beyond the last included.
    """

    batch: Sequence[Size]
    height: Size
    width: Size
    columns: Size
    taps: Sequence[int]
    run: Size
    left: Callable[[list[Expr], Expr, Expr, list[Expr]], Expr]
    matrix: Callable[[list[Expr]], Expr]
    store: Callable[[list[Expr], Expr, Expr, Expr, Expr], None]
    pitch: Expr | None = None
    line: int | None = None
    plain: bool = False
    initial: Callable[[list[Expr], Expr, int], Expr] | None = None

    def in_line(self, k: KernelBuilder) -> Product:
        """The same product with all rows in one line: tiles run on from an image row into the next, so none is cut
        short at its end."""
        width = k.size(self.width)

        def left(batch: list[Expr], y: Expr, x: Expr, tap: list[Expr]) -> Expr:
            row, column = unflatten(x, [y, width])
            return self.left(batch, row, column, tap)

        def store(batch: list[Expr], y: Expr, x: Expr, n: Expr, total: Expr) -> None:
            row, column = unflatten(x, [y, width])
            self.store(batch, row, column, n, total)

        return replace(self, height=1, width=product([self.height, self.width]), left=left, store=store)


class Packing(Protocol):
    """How a right operand is packed: `width` columns side by side, each with `depth` elements of the run, which is
    padded to a multiple of `unit`."""

    @property
    def name(self) -> str: ...
    @property
    def right(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def unit(self) -> int: ...


def narrowed(mac: MultiplyAccumulate, columns: int) -> MultiplyAccumulate:
    """The multiply-add with no more vectors than the columns fill."""
    return mac.narrowed(columns)


def tile_shape(height: int, width: int, rows: int, together: int = 1) -> tuple[int, int]:
    """How many image rows and columns a tile of at most `rows` rows covers: whole image rows where they are short.

    `rows` is a multiple of `together`, and so are the columns where the image is wider.
    """

    def best(size: int, sizes: range, unit: int) -> int:
        # Two rows more for what a tile costs beside its rows: loading the right operand.
        return min(sizes, key=lambda count: (-(-size // count) * (count * unit + 2), -count))

    if width > rows:
        return 1, best(width, range(rows, max(rows // 2, 1) - 1, -together), 1)
    return best(height, range(1, max(1, min(height, rows // width)) + 1), width), width


def pack(matrices: np.ndarray[Any, Any], mac: Packing) -> np.ndarray[Any, Any]:
    """Pack [matrix, n, tap, j] as the module's docstring says."""
    count, columns, taps, run = matrices.shape
    panels, steps = -(-columns // mac.width), -(-run // mac.unit) * (mac.unit // mac.depth)
    padded = np.zeros((count, panels * mac.width, taps, steps * mac.depth), mac.right)
    padded[:, :columns, :, :run] = matrices
    split = padded.reshape(count, panels, mac.width, taps, steps, mac.depth)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 4, 2, 5))


def packed_elements(matrices: Size, columns: Size, taps: int, run: Size, mac: Packing) -> Size:
    """Elements of a packed operand."""
    return product([matrices, _ceil(columns, mac.width) * mac.width, taps, _ceil(run, mac.unit) * mac.unit])


def store_result(group: Group, k: KernelBuilder, index: list[Expr], value: Expr) -> None:
    """Store the group's result at `index`, where its anchor is `value`."""
    anchor = group.core
    at = At(k, group.nodes, {anchor: lambda _: value})
    k.tensor(group.output).store(index, at(group.output, index))


def _ceil(size: Size, unit: int) -> Size:
    return (size + (unit - 1)) // unit


def emit_pack(
    k: KernelBuilder,
    mac: Packing,
    target: tirx.Buffer,
    matrices: Size,
    columns: Size,
    taps: int,
    run: Size,
    read: Callable[[Expr, Expr, Expr, Expr], Expr],
) -> None:
    """Pack at run time what `read(matrix, n, tap, j)` gives."""
    panels = k.size(_ceil(columns, mac.width))
    steps = k.size(_ceil(run, mac.unit) * (mac.unit // mac.depth))
    size = k.ranges.maximum(packed_elements(matrices, columns, taps, run, mac))
    with k.loop(k.size(matrices) * panels, parallel=size >= PARALLEL_WORK) as flat:
        matrix, panel = unflatten(flat, [k.size(matrices), panels])
        with k.loop(taps) as tap, k.loop(steps) as step, k.loop(mac.width) as lane, k.loop(mac.depth) as part:
            n, j = panel * mac.width + lane, step * mac.depth + part
            inside = T.And(n < k.size(columns), j < k.size(run))
            at = (((flat * taps + tap) * steps + step) * mac.width + lane) * mac.depth + part
            value = T.if_then_else(inside, read(matrix, n, tap, j), T.cast(T.int32(0), mac.right))
            T.buffer_store(target, value, [at])


def emit_product(
    k: KernelBuilder,
    mac: MultiplyAccumulate,
    left: tirx.Buffer,
    right: tirx.Buffer,
    shape: Product,
    by_tiles: bool | None = None,
) -> None:
    """The loops over batch, panels and tiles.

    Threads share the tiles where the packed operand stays in a core's cache, else its panels: each is then read once
    (`by_tiles` says it where the caller knows better).
    """
    maximum, minimum = k.ranges.maximum, k.ranges.minimum
    tile_height, tile_width = tile_shape(maximum(shape.height), maximum(shape.width), mac.rows, mac.together)
    whole = minimum(shape.width) >= tile_width and minimum(shape.height) >= tile_height
    if not whole:  # dynamic, and perhaps smaller than a tile: full tiles, then single rows
        tile_height = 1
    height = k.size(shape.height)
    batch = [k.size(size) for size in shape.batch]
    panels, steps = k.size(_ceil(shape.columns, mac.width)), k.size(_ceil(shape.run, mac.depth))
    taps = int(np.prod(shape.taps, dtype=np.int64))
    panel_size = taps * mac.width * mac.depth * steps

    tiles = maximum(product([*shape.batch, _ceil(shape.height, tile_height), _ceil(shape.width, tile_width)]))
    work = maximum(product([*shape.batch, shape.height, shape.width, shape.columns, taps, shape.run]))
    parallel = work // mac.lanes >= PARALLEL_WORK // 8
    resident = maximum(product([shape.columns, taps, shape.run])) * np.dtype(mac.right).itemsize <= RESIDENT_BYTES
    few_panels = maximum(product([*shape.batch, _ceil(shape.columns, mac.width)])) < 4
    if by_tiles is None:
        by_tiles = tiles >= 4 and (resident or few_panels)

    def sweep(number: Expr, left_edge: Callable[[Expr], Expr], vertical: Expr, rows: int, columns: int) -> None:
        """All tiles of rows x columns, `number` of them side by side."""

        def tile(outer: list[Expr], panel: Expr, top: Expr, position: Expr) -> None:
            y = T.min(top * rows, height - rows) if rows > 1 else top
            base = (shape.matrix(outer) * panels + panel) * panel_size
            corner = (y, left_edge(position))
            ahead = None
            if not by_tiles and tiles == 1:
                ahead = base + AHEAD_BYTES // np.dtype(mac.right).itemsize, mac.width * mac.depth
            elif not by_tiles and isinstance(vertical, tirx.IntImm) and isinstance(number, tirx.IntImm):
                part = panel_size // (vertical * number)
                ahead = base + panel_size + (top * number + position) * part, -(-mac.width * mac.depth // tiles)
            emit_tile(k, mac, left, right, shape, outer, panel, base, steps, corner, (rows, columns), ahead)

        extents = [*batch, vertical, number] if by_tiles else [*batch, panels]
        with k.loop(_volume(extents), parallel) as flat:
            if by_tiles:
                *outer, top, position = unflatten(flat, extents)
                with k.loop(panels) as panel:
                    tile(outer, panel, top, position)
            else:
                *outer, panel = unflatten(flat, extents)
                with k.loop(vertical) as top, k.loop(number) as position:
                    tile(outer, panel, top, position)

    vertical = k.size(_ceil(shape.height, tile_height))
    for number, left_edge, columns in strips(k, shape.width, tile_width, whole):
        sweep(number, left_edge, vertical, tile_height if whole else 1, columns)


def strips(k: KernelBuilder, width: Size, tile: int, whole: bool) -> list[tuple[Expr, Callable[[Expr], Expr], int]]:
    """How tiles cover `width` columns: for each kind of tile how many, where the i-th begins, and its columns.

    `whole`: the width holds at least one tile. Then the last one overlaps the one before it rather than being smaller:
    a second body would cost more. Else full tiles and single columns.
    """
    size = k.size(width)
    if whole:
        return [(k.size(_ceil(width, tile)), lambda i: T.min(i * tile, size - tile), tile)]
    full = size // tile
    singles: list[tuple[Expr, Callable[[Expr], Expr], int]] = [(size - full * tile, lambda i: full * tile + i, 1)]
    return [(full, lambda i: i * tile, tile), *singles] if tile > 1 else singles


def _volume(extents: Sequence[Expr]) -> Expr:
    result = integer(1)
    for extent in extents:
        result = result * extent
    return result


def emit_tile(
    k: KernelBuilder,
    mac: MultiplyAccumulate,
    left: tirx.Buffer,
    right: tirx.Buffer,
    shape: Product,
    batch: list[Expr],
    panel: Expr,
    base: Expr,
    steps: Expr,
    corner: tuple[Expr, Expr],
    extent: tuple[int, int],
    ahead: tuple[Expr, int] | None = None,
) -> None:
    """One register tile of `extent` image rows and columns from `corner` on, and its epilogue.

    ahead: a place in the right operand from which to fetch what comes later, and by how many elements a step.
    """
    rows = extent[0] * extent[1]
    y, x = T.Bind(corner[0]), T.Bind(corner[1])
    sums = k.local(-(-rows // mac.together) * mac.together * mac.width, mac.accumulator)
    first = panel * mac.width

    def initial(column: int, count: int) -> Expr:
        if shape.initial is not None:
            return shape.initial(batch, first + column, count)
        return T.broadcast(T.cast(T.int32(0), mac.accumulator), count)

    mac.start(sums, rows, initial)
    with ExitStack() as loops:
        tap = [loops.enter_context(k.loop(size)) for size in shape.taps]
        flat = integer(0)
        for position, size in zip(tap, shape.taps, strict=True):
            flat = flat * size + position
        starts = [T.Bind(shape.left(batch, y + i, x + j, tap)) for i in range(extent[0]) for j in range(extent[1])]
        panel_start = T.Bind(base + flat * steps * (mac.width * mac.depth))

        def fetch(step: Expr) -> None:
            if ahead is not None:
                for part in range(0, ahead[1], 64 // np.dtype(mac.right).itemsize):
                    k.prefetch(right, ahead[0] + (flat * steps + step) * ahead[1] + part)

        mac.accumulate(k, sums, left, starts, right, panel_start, steps, fetch)
    if shape.plain:
        for row, column, _, value in mac.results(sums, rows):
            shape.store(batch, y + row // extent[1], x + row % extent[1], first + column, value)
        return
    # Through memory, so that the epilogue is a loop over the rows: the sums stay registers where indices are constant.
    tile = k.local(rows * mac.width, mac.accumulator)
    for row, column, count, value in mac.results(sums, rows):
        store_vector(tile, integer(row * mac.width + column), count, value)
    valid: int | Expr = mac.width
    if not (isinstance(shape.columns, int) and shape.columns % mac.width == 0):
        valid = T.min(integer(mac.width), k.size(shape.columns) - first)
    # Narrow results of several vectors fill one: as many columns at a time as the shape allows.
    lanes = mac.lanes
    if k.isa.bytes == 16 and isinstance(shape.columns, int):
        lanes = max(lanes, next((n for n in (16, 8) if mac.width % n == 0 and shape.columns % n == 0), 1))
    with k.loop(extent[0]) as i, k.loop(extent[1]) as j:
        offset = (i * extent[1] + j) * mac.width
        vector_loop(k, valid, lanes, lambda n: shape.store(batch, y + i, x + j, first + n, tile[offset + n]))
