"""Register tiles of a product with codes: a few rows of activations against one panel of weight rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import scalars
from graphc.backends.tvm.kernel import AHEAD_BYTES, Expr, KernelBuilder, integer, store_vector, vector
from graphc.backends.tvm.templates.byte_products import ByteProduct
from graphc.backends.tvm.templates.weight_codes import Codes
from graphc.target import Target

# Groups up to this many columns are written out.
UNROLLED = 64
# From so many rows on, codes are scaled before they are multiplied: a product more for a code, a sum less for a row.
SCALED_ROWS = 4


@dataclass(frozen=True)
class Weight:
    """A weight of `depth` columns, packed. scales: [panel, group, row of the panel], or one value where `uniform`.
    zeros: in the same order, or one number."""

    codes: Codes
    packed: tirx.Buffer
    scales: tirx.Buffer
    uniform: bool
    zeros: tirx.Buffer | int
    group: int
    depth: int
    target: Target

    def unit_start(self, panel: Expr, column: Expr) -> Expr:
        """The first byte of the unit of `column`, a multiple of the unit."""
        units = -(-self.depth // self.codes.unit)
        return (panel * units + T.truncdiv(column, integer(self.codes.unit))) * self.codes.unit_bytes

    def scale(self, panel: Expr, group: Expr, v: int) -> Expr:
        lanes = self.codes.lanes
        found = self.scales[integer(0)] if self.uniform else vector(self.scales, self._at(panel, group, v), lanes)
        if "float16" in str(self.scales.ty.dtype):
            found = scalars.widened(found, self.target)
        return T.Bind(T.broadcast(found, lanes) if self.uniform else found)

    def zero(self, panel: Expr, group: Expr, v: int, dtype: str) -> Expr:
        """The zero points of a vector of rows."""
        lanes = self.codes.lanes
        if isinstance(self.zeros, int):
            return T.broadcast(T.cast(T.int32(self.zeros), dtype), lanes)
        loaded = T.cast(vector(self.zeros, self._at(panel, group, v), lanes), f"int32x{lanes}")
        return T.Bind(T.cast(loaded, f"{dtype}x{lanes}"))

    def _at(self, panel: Expr, group: Expr, v: int) -> Expr:
        groups = self.depth // self.group
        return (panel * groups + group) * self.codes.width + v * self.codes.lanes


@dataclass(frozen=True)
class Activations:
    """Rows of `width` elements. Quantized: a scale for each `group`; `sums` of each stretch that has one scale here and
    in the weight, times the negative zero point where that is one number."""

    elements: tirx.Buffer
    width: int
    group: int
    scales: tirx.Buffer | None = None
    sums: tirx.Buffer | None = None


class Tile:
    """`rows` x `vectors` accumulators in registers."""

    def __init__(self, k: KernelBuilder, rows: int, codes: Codes, dtype: str) -> None:
        self.rows, self.vectors, self.lanes, self.width = rows, codes.vectors, codes.lanes, codes.width
        self._k, self._buffer, self._dtype = k, k.local(rows * codes.width, dtype), dtype

    def clear(self) -> None:
        zero = T.broadcast(T.cast(T.int32(0), self._dtype), self.lanes)
        for row, v in self.slots():
            self[row, v] = zero

    def slots(self) -> Iterator[tuple[int, int]]:
        return ((row, v) for row in range(self.rows) for v in range(self.vectors))

    def _at(self, slot: tuple[int, int]) -> Expr:
        return integer(slot[0] * self.width + slot[1] * self.lanes)

    def __getitem__(self, slot: tuple[int, int]) -> Expr:
        return vector(self._buffer, self._at(slot), self.lanes)

    def __setitem__(self, slot: tuple[int, int], value: Expr) -> None:
        store_vector(self._buffer, self._at(slot), self.lanes, value)

    def stored(self) -> tirx.Buffer:
        """A copy in memory, which an epilogue reads by any index: this one stays in registers."""
        copy = self._k.local(self.rows * self.width, self._dtype)
        for slot in self.slots():
            store_vector(copy, self._at(slot), self.lanes, self[slot])
        return copy


def byte_tile(
    k: KernelBuilder, weight: Weight, x: Activations, product: ByteProduct, panel: Expr, row: Expr, rows: int
) -> tirx.Buffer:
    """Integer sums over each stretch of columns with one scale on both sides, then their scaled sum in floats."""
    codes, part = weight.codes, min(weight.group, x.group)
    total, sums = Tile(k, rows, codes, "float32"), Tile(k, rows, codes, "int32")
    ahead = _distance(k)
    total.clear()
    assert x.scales is not None
    with k.loop(weight.depth // part) as number:
        column = number * part
        start = T.Bind(weight.unit_start(panel, column))
        left = [T.Bind((row + i) * x.width + column) for i in range(rows)]
        places = [(row + i) * (weight.depth // part) + number for i in range(rows)]
        if x.sums is not None and isinstance(weight.zeros, int):
            for i, v in sums.slots():
                sums[i, v] = T.broadcast(x.sums[places[i]], codes.lanes)
        else:
            sums.clear()
        with _units(k, -(-part // codes.unit), part <= UNROLLED) as units:
            for u in units:
                registers = _load(k, weight, start, u, ahead)
                for step in range(codes.unit // 4):
                    taken = [codes.bytes(found, step) for found in registers]
                    for i in range(rows):
                        four = vector(x.elements, left[i] + u * codes.unit + 4 * step, 4)
                        word = T.Bind(T.broadcast(T.reinterpret("int32", four), codes.lanes))
                        for v in range(codes.vectors):
                            sums[i, v] = product.step(sums[i, v], taken[v], word)
        group = T.truncdiv(column, integer(weight.group))
        scales = [weight.scale(panel, group, v) for v in range(codes.vectors)]
        for i in range(rows):
            own = x.scales[(row + i) * (weight.depth // x.group) + T.truncdiv(column, integer(x.group))]
            shared = T.Bind(T.broadcast(own, codes.lanes))
            for v in range(codes.vectors):
                whole = sums[i, v]
                if x.sums is not None and not isinstance(weight.zeros, int):
                    whole = whole - weight.zero(panel, group, v, "int32") * T.broadcast(x.sums[places[i]], codes.lanes)
                total[i, v] = total[i, v] + T.cast(whole, f"float32x{codes.lanes}") * (scales[v] * shared)
    return total.stored()


def float_tile(k: KernelBuilder, weight: Weight, x: Activations, panel: Expr, row: Expr, rows: int) -> tirx.Buffer:
    """Codes as floats, less the zero point; sums over a group are scaled, or codes where there are many rows."""
    codes, scaled = weight.codes, rows >= SCALED_ROWS
    total, sums = Tile(k, rows, codes, "float32"), Tile(k, rows, codes, "float32")
    total.clear()
    decode, ahead = _float_decoder(k, weight), _distance(k)
    with k.loop(weight.depth // weight.group) as group:
        column = group * weight.group
        start = T.Bind(weight.unit_start(panel, column))
        left = [T.Bind((row + i) * x.width + column) for i in range(rows)]
        scales = [weight.scale(panel, group, v) for v in range(codes.vectors)]
        zeros = [weight.zero(panel, group, v, "float32") for v in range(codes.vectors)]
        into = total if scaled else sums
        if not scaled:
            sums.clear()
        with k.loop(-(-weight.group // codes.unit)) as u:
            registers = _load(k, weight, start, u, ahead)
            for j in range(codes.unit):
                taken = [decode(registers[v], j, zeros[v]) for v in range(codes.vectors)]
                if scaled:
                    taken = [T.Bind(value * scale) for value, scale in zip(taken, scales, strict=True)]
                for i in range(rows):
                    one = T.Bind(T.broadcast(x.elements[left[i] + u * codes.unit + j], codes.lanes))
                    for v in range(codes.vectors):
                        into[i, v] = into[i, v] + taken[v] * one
        if not scaled:
            for i, v in total.slots():
                total[i, v] = total[i, v] + sums[i, v] * scales[v]
    return total.stored()


def _distance(k: KernelBuilder) -> int:
    """Bytes between what is read and what is asked for ahead of it."""
    return k.parameter("ahead", AHEAD_BYTES, (0, 1024, 2048, 4096, 8192, 16384))


def _load(k: KernelBuilder, weight: Weight, start: Expr, u: Expr, ahead: int) -> list[list[Expr]]:
    """The registers of unit `u`, for each vector of rows."""
    codes, first = weight.codes, start + u * weight.codes.unit_bytes
    if ahead:
        for line in range(0, codes.unit_bytes, 64):
            k.prefetch(weight.packed, first + (line + ahead))
    return [codes.load(weight.packed, first, v) for v in range(codes.vectors)]


def _float_decoder(k: KernelBuilder, weight: Weight) -> Callable[[list[Expr], int, Expr], Expr]:
    """decode(registers, column, zeros): the codes of a column less their zero points, as floats."""
    codes = weight.codes
    kind = f"float32x{codes.lanes}"
    if codes.lanes < 16 or codes.bits == 8:
        return lambda registers, j, zeros: T.Bind(T.cast(codes.column(registers, j), kind) - zeros)
    # A permutation looks at four bits of each lane: a table of all codes spares the mask and the conversion.
    shared = weight.zeros if isinstance(weight.zeros, int) else 0
    values = (np.arange(16) % 2**codes.bits - shared).astype(np.float32)
    table = T.Bind(vector(k.constant(values, f"floats of {codes.bits}-bit codes"), integer(0), 16))
    permute = T.llvm_lookup_intrinsic_id("llvm.x86.avx512.permvar.sf.512")

    def decode(registers: list[Expr], j: int, zeros: Expr) -> Expr:
        found = T.call_llvm_pure_intrin(permute, table, codes.column(registers, j, masked=False), dtype=kind)
        return T.Bind(found if isinstance(weight.zeros, int) else found - zeros)

    return decode


@contextmanager
def _units(k: KernelBuilder, count: int, unrolled: bool) -> Iterator[list[Expr]]:
    """The positions of a loop's body: all where it is written out, else the loop's variable."""
    if unrolled:
        yield [integer(u) for u in range(count)]
    else:
        with k.loop(count) as u:
            yield [u]
