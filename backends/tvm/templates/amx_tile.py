"""Matrix products by Intel AMX: blocks of 2 x 2 tiles, 32 rows by 32 columns of sums.

    out[batch, row, n] = epilogue(sum over tap and j of left[row(batch, row, tap) + j] * right[n, tap, j])

A tile is 16 rows of 64 bytes. Neighbouring rows of the left operand lie `pitch` elements apart, so that a tile of it is
16 rows as they lie in memory, 64 bytes of each; a tile of the packed right operand is 64 bytes of the sum by 16
columns. One step loads 2 + 2 tiles and multiplies each with each (Intel 64 and IA-32 Architectures Optimization
Reference Manual, chapter 20): 4 x 8 cycles of loads under 4 x 16 cycles of multiplications. All kernels use the one
tile configuration that the runtime loads; where rows do not fill their last tile, it begins sooner.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer
from graphc.backends.tvm.loops import PARALLEL_WORK, unflatten, vector_loop
from graphc.backends.tvm.sizes import product
from graphc.backends.tvm.templates.register_tile import Product
from graphc.tensor_type import Size

ROWS = 16
LANES = 16
# Fewer rows than this leave so much of a tile empty that vectors are as fast.
FEWEST_ROWS = 5
# A packed operand of up to this many bytes stays in a core's second-level cache (2 MB in every CPU with AMX).
RESIDENT_BYTES = 1 << 20
# The accumulators' tiles [row tile][column tile], the left operand's and the right one's.
_SUMS, _LEFT, _RIGHT = ((0, 1), (2, 3)), (4, 5), (6, 7)


@dataclass(frozen=True)
class Tiles:
    """A multiplication of tiles. `left` and `right` are the types it reads, `depth` the elements of one column that
    lie side by side in the packed operand; the sum is padded to a multiple of `unit`, one tile row."""

    name: str
    left: str
    right: str
    accumulator: str
    depth: int
    unit: int
    width: int

    def narrowed(self, columns: int) -> Tiles:
        """With panels no wider than the columns need."""
        return self if columns > LANES else Tiles(**{**self.__dict__, "width": LANES})

    def reads(self, dtype: str) -> bool:
        return dtype == self.left

    def flip(self, dtype: str) -> int:
        """Values are read as they are: both signs have their instruction."""
        return 0


def integer_tiles(left: str) -> Tiles:
    """int8 or uint8 times int8, exact sums in int32."""
    return Tiles({"int8": "tdpbssd", "uint8": "tdpbusd"}[left], left, "int8", "int32", 4, 64, 2 * LANES)


def refusal(isa: InstructionSet, dtype: str, rows: int) -> str | None:
    """Why a product with this left operand and (at most) so many rows is not made for tiles; None where it is."""
    feature = {"int8": "amx-int8", "uint8": "amx-int8"}.get(dtype)
    if feature is None or not isa.target.has("amx-tile", feature, "avx512f"):
        return f"the target has no AMX for {dtype}"
    if rows < FEWEST_ROWS:
        return f"{rows} rows fill no tile"
    return None


def may_overread(k: KernelBuilder, rows: Size) -> bool:
    """Whether tiles read rows behind the last one: there may be fewer than a tile holds."""
    return k.ranges.minimum(rows) < ROWS


def emit_tiles(k: KernelBuilder, tiles: Tiles, left: tirx.Buffer, right: tirx.Buffer, shape: Product) -> None:
    """The loops over blocks of rows and panels of columns. Rows are shape.width; shape.height is 1.

    Threads share blocks and panels alike: one after the other, the faster one being that whose operand stays in cache.
    """
    k.tiles = True
    maximum = k.ranges.maximum
    assert isinstance(shape.columns, int) and isinstance(shape.run, int)
    rows, columns = k.size(shape.width), shape.columns
    steps, taps = -(-shape.run // tiles.unit), int(np.prod(shape.taps, dtype=np.int64))
    panels = -(-columns // tiles.width)
    count = (shape.width + (ROWS - 1)) // ROWS
    blocks = (count + 1) // 2
    fixed = isinstance(count, int)
    short = may_overread(k, shape.width)
    right_bytes = panels * tiles.width * taps * steps * 64
    blocks_outside = right_bytes <= RESIDENT_BYTES and maximum(blocks) > 1
    batch = [k.size(size) for size in shape.batch]
    inner = [k.size(blocks), integer(panels)] if blocks_outside else [k.size(blocks)]
    extents = [*batch, *inner] if blocks_outside else [integer(panels), *batch, *inner]
    work = maximum(product([*shape.batch, shape.width])) * columns * taps * steps * tiles.unit

    def tile(outer: list[Expr], block: Expr, panel: Expr, row_tiles: int, column_tiles: int) -> None:
        starts = [T.Bind((block * 2 + i) * ROWS) for i in range(row_tiles)]
        if not short:
            starts = [T.Bind(T.min(start, rows - ROWS)) for start in starts]
        where = (outer, panel, starts, column_tiles)
        _emit_sums(k, tiles, left, right, shape, where, (panels, taps, steps))

    total = integer(1)
    for extent in extents:
        total = total * extent
    with k.loop(total, parallel=work // 256 >= PARALLEL_WORK // 8) as flat:
        index = unflatten(flat, extents)
        if blocks_outside:
            *outer, block, panel = index
        else:
            panel, *outer, block = index
        half_block = fixed and count % 2 == 1
        half_panel = tiles.width == 2 * LANES and 0 < columns % tiles.width <= LANES

        def by_columns(row_tiles: int) -> None:
            full = tiles.width // LANES
            _either(
                half_panel,
                panel < panels - 1,
                lambda: tile(outer, block, panel, row_tiles, full),
                lambda: tile(outer, block, panel, row_tiles, 1),
            )

        _either(half_block, block < k.size(blocks) - 1, lambda: by_columns(2), lambda: by_columns(1))


def _either(needed: bool, condition: Expr, usual: Callable[[], None], last: Callable[[], None]) -> None:
    """`usual()`, or `last()` where `needed` and the condition fails."""
    if not needed:
        usual()
        return
    with T.If(condition):
        with T.Then():
            usual()
        with T.Else():
            last()


def _emit_sums(
    k: KernelBuilder,
    tiles: Tiles,
    left: tirx.Buffer,
    right: tirx.Buffer,
    shape: Product,
    where: tuple[list[Expr], Expr, list[Expr], int],
    counts: tuple[int, int, int],
) -> None:
    """The sums of one block from its first rows `starts` on, and its epilogue."""
    outer, panel, starts, column_tiles = where
    panels, taps, steps = counts
    row_tiles = len(starts)
    step_size = tiles.width * tiles.unit
    right_stride = integer(4 * tiles.width)  # bytes between rows of a right tile
    assert shape.pitch is not None
    left_stride = shape.pitch * np.dtype(tiles.left).itemsize
    for i in range(row_tiles):
        for j in range(column_tiles):
            _tile_instruction("tilezero", _SUMS[i][j])
    base = T.Bind((shape.matrix(outer) * panels + panel) * (taps * steps * step_size))
    with ExitStack() as loops:
        tap = [loops.enter_context(k.loop(size)) for size in shape.taps]
        flat = integer(0)
        for position, size in zip(tap, shape.taps, strict=True):
            flat = flat * size + position
        runs = [T.Bind(shape.left(outer, integer(0), start, tap)) for start in starts]
        packed = T.Bind(base + flat * (steps * step_size))
        with k.loop(steps) as step:
            # Each load stands right before the first multiplication that needs it.
            for i in range(row_tiles):
                _tile_instruction("tileloadd64", _LEFT[i], left[runs[i] + step * tiles.unit], left_stride)
                for j in range(column_tiles):
                    if i == 0:
                        start = packed + step * step_size + j * (LANES * tiles.depth)
                        _tile_instruction("tileloadd64", _RIGHT[j], right[start], right_stride)
                    _tile_instruction(tiles.name, _SUMS[i][j], _LEFT[i], _RIGHT[j])
    block = k.local(row_tiles * ROWS * column_tiles * LANES, tiles.accumulator)
    width = column_tiles * LANES
    for i in range(row_tiles):
        for j in range(column_tiles):
            _tile_instruction(
                "tilestored64", _SUMS[i][j], block[integer((i * ROWS) * width + j * LANES)], integer(4 * width)
            )
    first = T.Bind(panel * tiles.width)
    rest = int(shape.columns) % tiles.width
    valid: int | Expr = width
    if width < tiles.width:
        valid = rest
    elif rest > LANES or (rest and tiles.width == LANES):
        valid = T.min(integer(width), int(shape.columns) - first)
    conditions = [shape.kept] if shape.kept is not None else []
    if may_overread(k, shape.width):
        conditions.append(lambda row: row < k.size(shape.width))
    for i, start in enumerate(starts):
        with k.loop(ROWS) as r, ExitStack() as inside:
            row = T.Bind(start + r)
            for condition in conditions:
                inside.enter_context(T.If(condition(row)))
                inside.enter_context(T.Then())
            offset = (r + i * ROWS) * width
            vector_loop(k, valid, LANES, _storing(shape, outer, row, first, block, offset))


def _storing(
    shape: Product, outer: list[Expr], row: Expr, first: Expr, block: tirx.Buffer, offset: Expr
) -> Callable[[Expr], None]:
    return lambda n: shape.store(outer, integer(0), row, first + n, block[offset + n])


def _tile_instruction(name: str, tile: int, *operands: int | Expr) -> None:
    """One instruction: its tile registers, or a tile register, the element that memory begins at, and the stride."""
    arguments = [T.int8(operand) if isinstance(operand, int) else operand for operand in operands]
    if arguments and not isinstance(operands[0], int):
        arguments[0] = T.address_of(arguments[0])
    instruction = T.llvm_lookup_intrinsic_id(f"llvm.x86.{name}")
    T.evaluate(T.call_llvm_intrin("void", instruction, T.int8(tile), *arguments))
