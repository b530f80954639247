"""Intel AMX: tiles of 16 rows of 64 bytes, eight a thread, and the products that are made for them.

A tile of the left operand is 16 rows as they lie in memory, 64 bytes of each, a fixed pitch apart; a tile of the packed
right operand is 64 bytes of the sum by 16 columns; a tile of sums is 16 by 16. The runtime configures all eight alike,
once a thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.tirx.script import builder as T

from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder
from graphc.backends.tvm.operations import BFLOAT16
from graphc.backends.tvm.templates.register_tile import Product
from graphc.tensor_type import Size

ROWS = 16
LANES = 16
# Fewer rows than this leave so much of a tile empty that vectors are as fast.
FEWEST_ROWS = 5
LINE_BYTES = 64


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

    @property
    def is_integer(self) -> bool:
        return self.accumulator == "int32"

    def flip(self, dtype: str) -> int:
        """Values are read as they are: both signs have their instruction."""
        return 0


def tiles_for(dtype: str, columns: int) -> Tiles:
    """The multiplication for a left operand of this type, with panels no wider than the columns need.

    int8 or uint8 times int8 give exact sums in int32. bfloat16 times bfloat16 is summed in float32, even and odd
    products apart, then together; denormals count as nought.
    """
    width = LANES if columns <= LANES else 2 * LANES
    if dtype == BFLOAT16:
        return Tiles("tdpbf16ps", dtype, dtype, "float32", 2, 32, width)
    return Tiles({"int8": "tdpbssd", "uint8": "tdpbusd"}[dtype], dtype, "int8", "int32", 4, 64, width)


def refusal(isa: InstructionSet, dtype: str, rows: Size) -> str | None:
    """Why a product with this left operand and so many rows is not made for tiles; None where it is."""
    feature = {"int8": "amx-int8", "uint8": "amx-int8", BFLOAT16: "amx-bf16"}.get(dtype)
    if feature is None or not isa.target.has("amx-tile", feature, "avx512f"):
        return f"the target has no AMX for {dtype}"
    if isinstance(rows, int) and rows < FEWEST_ROWS:
        return f"{rows} rows fill no tile"
    return None


def tile_rows(shape: Product) -> Size:
    """Rows from the first wanted one to the last, with what lies between the lines of an image."""
    return shape.width if shape.line is None else (shape.height - 1) * shape.line + shape.width


def overread(k: KernelBuilder, tiles: Tiles, rows: Size, run: int, pitch: int) -> int:
    """Bytes behind the left operand that tiles may read."""
    width = np.dtype(tiles.left).itemsize
    last = width * (-run % tiles.unit)
    return last if k.ranges.minimum(rows) >= ROWS else last + width * pitch * 2 * ROWS


def tile_instruction(name: str, tile: int, *operands: int | Expr) -> None:
    """One instruction: its tile registers, or a tile register, the element that memory begins at, and the stride."""
    arguments = [T.int8(operand) if isinstance(operand, int) else operand for operand in operands]
    if arguments and not isinstance(operands[0], int):
        arguments[0] = T.address_of(arguments[0])
    instruction = T.llvm_lookup_intrinsic_id(f"llvm.x86.{name}")
    T.evaluate(T.call_llvm_intrin("void", instruction, T.int8(tile), *arguments))
