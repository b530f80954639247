"""Matrix products by AMX tiles: blocks of 2 x 2 tiles, 32 rows by 32 columns of sums.

    out[batch, row, n] = epilogue(sum over tap and j of left[row(batch, row, tap) + j] * right[n, tap, j])

One step loads 2 + 2 tiles and multiplies each with each (Intel 64 and IA-32 Architectures Optimization Reference
Manual, chapter 20): 4 x 8 cycles of loads under 4 x 16 cycles of multiplications. While the tiles multiply one block,
the vector units finish the sums of the block before it, a few rows a step.

Where rows do not fill their last tile, it begins sooner. Rows may run through an image line by line: what lies between
the lines is multiplied too, and dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer
from graphc.backends.tvm.loops import PARALLEL_WORK, unflatten
from graphc.backends.tvm.sizes import product
from graphc.backends.tvm.templates.amx_tile import LANES, LINE_BYTES, ROWS, Tiles, tile_instruction, tile_rows
from graphc.backends.tvm.templates.register_tile import Product
from graphc.tensor_type import Size

# A packed operand of up to this many bytes stays in a core's second-level cache (2 MB in every CPU with AMX).
RESIDENT_BYTES = 1 << 20
# Their first-level cache, less what the sums of two blocks take of it.
NEAR_BYTES = 40 << 10
# Tiles: the sums [row tile][column tile], the left operand, the right one.
_SUMS, _LEFT, _RIGHT = ((0, 1), (2, 3)), (4, 5), (6, 7)


@dataclass(frozen=True)
class _Loops:
    """A product cut into blocks: what all of them have in common. Sizes in tiles, taps and steps."""

    k: KernelBuilder
    tiles: Tiles
    left: tirx.Buffer
    right: tirx.Buffer
    shape: Product
    panels: int
    taps: int
    steps: int
    panels_inside: bool  # the panel changes faster than the rows
    load_left: str  # the instructions
    load_right: str

    @property
    def rows(self) -> Size:
        return tile_rows(self.shape)

    @property
    def row_tiles(self) -> Size:
        return (self.rows + (ROWS - 1)) // ROWS

    @property
    def blocks(self) -> Size:
        return (self.row_tiles + 1) // 2

    @property
    def columns(self) -> int:
        return int(self.shape.columns)

    @property
    def has_half_block(self) -> bool:
        """Whether the last block of rows is known to be one tile."""
        return isinstance(self.row_tiles, int) and self.row_tiles % 2 == 1

    def column_tiles(self, last: bool) -> int:
        rest = self.columns % self.tiles.width
        return 1 if self.tiles.width == LANES or (last and 0 < rest <= LANES) else 2


@dataclass(frozen=True)
class _Block:
    """Where a block lies: the batch, the first rows of its tiles, the panel of columns."""

    outer: list[Expr]
    number: Expr
    starts: list[Expr]
    panel: Expr


def emit_tiles(k: KernelBuilder, tiles: Tiles, left: tirx.Buffer, right: tirx.Buffer, shape: Product) -> None:
    """The loops over blocks of rows and panels of columns.

    Threads take equal shares of the blocks. Either the panels or the rows change faster, whichever leaves in cache what
    is read again.
    """
    k.tiles = True
    steps, taps = -(-int(shape.run) // tiles.unit), int(np.prod(shape.taps, dtype=np.int64))
    panels = -(-int(shape.columns) // tiles.width)
    panel_bytes = tiles.width * taps * steps * LINE_BYTES
    panels_inside = panels * panel_bytes <= RESIDENT_BYTES
    # Where a panel and the rows do not fit the first-level cache together, what passes by shall not push out what
    # stays: the rows meet panel after panel, or the taps of a kernel meet the same pixels again.
    tight = panel_bytes + 2 * ROWS * steps * LINE_BYTES > NEAR_BYTES
    passing = k.parameter("passing", (2 if panels_inside or taps > 1 else 1) if tight else 0, (0, 1, 2))
    kinds = [f"tileloadd{'t1' if passing == side else ''}64" for side in (1, 2)]
    loops = _Loops(k, tiles, left, right, shape, panels, taps, steps, panels_inside, *kinds)
    batch, blocks = [k.size(size) for size in shape.batch], k.size(loops.blocks)
    extents = [*batch, blocks, integer(panels)] if panels_inside else [integer(panels), *batch, blocks]
    count = product([*shape.batch, loops.blocks, panels])
    work = k.ranges.maximum(count) * 4 * taps * steps * 16  # cycles
    shares = k.parameter("shares", 16, (4, 8, 16, 32, 64)) if work >= PARALLEL_WORK // 8 else 1
    shares = min(shares, k.ranges.minimum(count))

    def at(flat: Expr) -> _Block:
        index = unflatten(flat, extents)
        panel, outer, block = (
            (index[-1], index[:-2], index[-2]) if panels_inside else (index[0], index[1:-1], index[-1])
        )
        firsts = [T.Bind((block * 2 + i) * ROWS) for i in range(2)]
        if k.ranges.minimum(loops.rows) >= ROWS:
            firsts = [T.Bind(T.min(first, k.size(loops.rows) - ROWS)) for first in firsts]
        return _Block([T.Bind(position) for position in outer], block, firsts, T.Bind(panel))

    with k.loop(shares, parallel=shares > 1) as share:
        total = k.size(count)
        begin, end = (
            T.Bind(T.truncdiv(share * total, integer(shares))),
            T.Bind(T.truncdiv((share + 1) * total, integer(shares))),
        )
        sums = k.aligned(2 * 2 * ROWS * tiles.width, tiles.accumulator)
        half = 2 * ROWS * tiles.width
        with T.serial(begin, end) as flat:
            before = at(T.max(flat - 1, begin))
            unfinished = T.Bind(T.Select(flat > begin, _limit(loops, before), integer(0)))
            place = T.Bind(T.truncmod(flat, integer(2)) * half)
            finish = _Finish(loops, before, sums, half - place, unfinished)
            _emit_block(loops, at(flat), sums, place, finish)
        last = at(end - 1)
        finish = _Finish(loops, last, sums, T.Bind(T.truncmod(end - 1, integer(2)) * half), _limit(loops, last))
        with k.loop(2 * ROWS) as row:
            finish.row(row)


def _limit(loops: _Loops, block: _Block) -> Expr:
    """Rows of sums that a block has."""
    if not loops.has_half_block:
        return integer(2 * ROWS)
    return T.Select(block.number < loops.k.size(loops.blocks) - 1, integer(2 * ROWS), integer(ROWS))


def _emit_block(loops: _Loops, block: _Block, sums: tirx.Buffer, place: Expr, finish: _Finish) -> None:
    """Multiply one block and store its sums from `place` on, while the block before it is finished."""

    def multiply(row_tiles: int, last_panel: bool) -> None:
        _emit_sums(loops, block, row_tiles, loops.column_tiles(last_panel), finish)
        for i in range(row_tiles):
            for j in range(loops.column_tiles(last_panel)):
                start = place + (i * ROWS * loops.tiles.width + j * LANES)
                tile_instruction("tilestored64", _SUMS[i][j], sums[start], integer(4 * loops.tiles.width))

    def by_columns(row_tiles: int) -> None:
        narrow = loops.column_tiles(True) < loops.column_tiles(False)
        inside = block.panel < loops.panels - 1
        _either(narrow, inside, lambda: multiply(row_tiles, False), lambda: multiply(row_tiles, True))

    inside = block.number < loops.k.size(loops.blocks) - 1
    _either(loops.has_half_block, inside, lambda: by_columns(2), lambda: by_columns(1))


def _either(needed: bool, condition: Expr, usual: Callable[[], None], last: Callable[[], None]) -> None:
    """`usual()`, or `last()` where it is `needed` and the condition fails."""
    if not needed:
        usual()
        return
    with T.If(condition):
        with T.Then():
            usual()
        with T.Else():
            last()


def _emit_sums(loops: _Loops, block: _Block, row_tiles: int, column_tiles: int, finish: _Finish) -> None:
    k, tiles, shape = loops.k, loops.tiles, loops.shape
    step_size = tiles.width * tiles.unit
    assert shape.pitch is not None
    left_stride = shape.pitch * np.dtype(tiles.left).itemsize
    right_stride = integer(tiles.width * tiles.depth * np.dtype(tiles.right).itemsize)
    for i in range(row_tiles):
        for j in range(column_tiles):
            tile_instruction("tilezero", _SUMS[i][j])
    base = T.Bind((shape.matrix(block.outer) * loops.panels + block.panel) * (loops.taps * loops.steps * step_size))
    rows_a_step = -(-2 * ROWS // (loops.taps * loops.steps))
    with ExitStack() as stack:
        tap = [stack.enter_context(k.loop(size)) for size in shape.taps]
        flat = integer(0)
        for position, size in zip(tap, shape.taps, strict=True):
            flat = flat * size + position
        runs = [T.Bind(shape.left(block.outer, integer(0), start, tap)) for start in block.starts[:row_tiles]]
        packed = T.Bind(base + flat * (loops.steps * step_size))
        with k.loop(loops.steps) as step:
            if not loops.panels_inside:
                _fetch_ahead(loops, block, packed + step * step_size)
            # Each load stands right before the first multiplication that needs it.
            for i in range(row_tiles):
                tile_instruction(loops.load_left, _LEFT[i], loops.left[runs[i] + step * tiles.unit], left_stride)
                for j in range(column_tiles):
                    if i == 0:
                        start = packed + step * step_size + j * (LANES * tiles.depth)
                        tile_instruction(loops.load_right, _RIGHT[j], loops.right[start], right_stride)
                    tile_instruction(tiles.name, _SUMS[i][j], _LEFT[i], _RIGHT[j])
            with k.loop(rows_a_step) as part:
                finish.row(T.Bind((flat * loops.steps + step) * rows_a_step + part))


def _fetch_ahead(loops: _Loops, block: _Block, place: Expr) -> None:
    """Bring what lies one panel behind `place` of the packed operand closer, in equal parts by all blocks of rows."""
    k, tiles, shape = loops.k, loops.tiles, loops.shape
    step_size = tiles.width * tiles.unit
    line = LINE_BYTES // np.dtype(tiles.right).itemsize
    lines = step_size // line
    parts = min(lines, k.ranges.maximum(product([*shape.batch, loops.blocks])))
    each = -(-lines // parts)
    number = integer(0)
    for position, size in zip([*block.outer, block.number], [*shape.batch, loops.blocks], strict=True):
        number = number * k.size(size) + position
    first = place + loops.taps * loops.steps * step_size + T.truncmod(number, integer(parts)) * (each * line)
    with k.loop(each) as i:
        k.prefetch(loops.right, first + i * line)


@dataclass(frozen=True)
class _Finish:
    """The epilogue of a block whose sums lie in `sums` from `place` on; it has `limit` rows."""

    loops: _Loops
    block: _Block
    sums: tirx.Buffer
    place: Expr
    limit: Expr

    def row(self, row: Expr) -> None:
        """Finish one row of at most 2 * ROWS; nothing where there is none."""
        shape, line = self.loops.shape, self.loops.shape.line
        first, second = self.block.starts
        with ExitStack() as stack:
            self._only_if(stack, row < self.limit)
            position = T.Bind(row + T.Select(row < ROWS, first, second - ROWS))
            if self.loops.k.ranges.minimum(self.loops.rows) < ROWS:
                self._only_if(stack, position < self.loops.k.size(self.loops.rows))
            y, x = integer(0), position
            if line is not None:
                short = T.cast(position, "int32")
                y = T.Bind(T.cast(T.truncdiv(short, T.int32(line)), "int64"))
                x = T.Bind(position - y * line)
                if line > int(shape.width):
                    self._only_if(stack, x < int(shape.width))
            self._columns(y, x, T.Bind(self.place + row * self.loops.tiles.width))

    def _only_if(self, stack: ExitStack, condition: Expr) -> None:
        stack.enter_context(T.If(condition))
        stack.enter_context(T.Then())

    def _columns(self, y: Expr, x: Expr, place: Expr) -> None:
        loops, width = self.loops, self.loops.tiles.width
        first = T.Bind(self.block.panel * width)

        def columns(count: int) -> None:
            done = 0
            while done < count:
                lanes = next(size for size in (16, 8, 4, 1) if size <= count - done)
                with loops.k.vectorized(lanes) as lane:
                    n = first + (lane + done)
                    loops.shape.store(self.block.outer, y, x, n, self.sums[place + (lane + done)])
                done += lanes

        rest = loops.columns % width
        inside = self.block.panel < loops.panels - 1
        _either(rest != 0, inside, lambda: columns(width), lambda: columns(rest))
