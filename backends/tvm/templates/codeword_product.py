"""linear with a vector-quantized weight: codewords are decoded into a panel that stays in the cache, then multiplied.

    out[m, n] = scale[n] * (sum over j and t of codebook[codes[n, j], t] * x[m, j*d + t])

The exact product, for as many rows as there are; for a few, tables of partial products are faster (passes/tabulate).
Threads share panels of weight rows. A block of about BLOCK columns is decoded at a time, and every tile of x meets it
before the next; AVX-512 looks codewords up in registers, an element of them at a time. Codes lie in fields of 1, 2, 4
or 8 bits, those of neighbouring pieces in one byte.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import scalars, weight_formats
from graphc.backends.tvm.evaluate import At, broadcast, constant
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, Packed, TensorView, integer, store_vector, vector
from graphc.backends.tvm.loops import PARALLEL_WORK, nest, unflatten, vector_loop
from graphc.backends.tvm.operations import arguments, shape_of
from graphc.backends.tvm.sizes import product
from graphc.backends.tvm.templates import multiply_accumulate
from graphc.backends.tvm.templates.register_tile import store_result, strips
from graphc.backends.tvm.templates.sparse_product import Sums, rows_in_line
from graphc.backends.tvm.weight_formats import Codewords

NAME = "codeword product"
OPERATORS: tuple[str, ...] = ()
Array = np.ndarray[Any, Any]
Decoder = Callable[[Expr, Expr, tirx.Buffer, "int | Expr", "int | Expr"], None]
# Columns of a decoded block: it and the codebook fit the first cache.
BLOCK = 256


def matches(group: Group, isa: InstructionSet) -> str | None:
    return None if _weight(group) is not None else "no vector-quantized weight"


def _weight(group: Group) -> Codewords | None:
    found = weight_formats.compressed(group.anchor) if group.absorbed and group.anchor is not None else None
    return found.weight if found is not None and isinstance(found.weight, Codewords) else None


def emit(group: Group, k: KernelBuilder) -> None:
    weight, anchor = _weight(group), group.core
    assert weight is not None
    args = arguments(anchor)
    x, depth = rows_in_line(k, group, args["input"])
    rows = product(shape_of(args["input"])[:-1])
    mac = multiply_accumulate.floating(k.isa)
    width, lanes = mac.width, mac.lanes
    codebook = k.around.stored(weight.codebook)
    columns, pieces = (int(size) for size in shape_of(weight.indices))
    spaces, d = (codebook.shape[0] if codebook.ndim == 3 else 1), codebook.shape[-1]
    run = pieces // spaces  # neighbours that share a codebook
    panels = -(-columns // width)
    together = k.parameter("pieces", max(1, BLOCK // d), sorted({max(1, n // d) for n in (64, 128, 256, 512)}))
    largest = k.ranges.maximum(rows)
    height = min(range(1, mac.rows + 1), key=lambda r: (-(-largest // r), r))
    codes = _Codes.of(k, weight, codebook.shape[-2], width)
    scale = None if weight.scale is None else k.constant(k.around.stored(weight.scale).reshape(-1), "scales of rows")
    decode = _decoder(k, codes, codebook)
    # The last tile may overlap the one before it: each has totals of its own.
    whole = k.ranges.minimum(rows) >= height
    slots = (rows + (height - 1)) // height * height
    totals = k.workspace(slots * (panels * width), "float32")
    tiles = strips(k, rows, height, whole)
    sizes = [k.size(size) for size in shape_of(anchor)[:-1]]

    with k.loop(panels, parallel=largest * columns * depth // lanes >= PARALLEL_WORK // 8) as panel:
        words = k.local(together * d * width, "float32")
        mine = T.Bind(panel * (k.size(slots) * width))
        vector_loop(k, k.size(slots) * width, lanes, lambda i: T.buffer_store(totals, T.float32(0), [mine + i]))
        with k.loop(spaces) as space, k.loop(-(-run // together)) as block:
            inside = block * together
            first = space * run + inside
            extent: int | Expr = together
            if run % together:
                extent = T.Bind(T.min(integer(together), integer(run) - inside))
            decode(panel, first, words, extent, space)
            for number, edge, tall in tiles:
                with k.loop(number) as position:
                    row = T.Bind(edge(position))
                    slot = T.Bind(mine + (position * tall if whole else row) * width)
                    sums = Sums(k, tall, mac.vectors, lanes)
                    starts = [T.Bind((row + i) * depth + first * d) for i in range(tall)]
                    with k.loop(extent * d) as step:
                        right = [T.Bind(vector(words, step * width + v * lanes, lanes)) for v in range(mac.vectors)]
                        for i in range(tall):
                            left = T.Bind(T.broadcast(x[starts[i] + step], lanes))
                            for v in range(mac.vectors):
                                sums[i, v] = sums[i, v] + right[v] * left
                    for i in range(tall):
                        for v in range(mac.vectors):
                            at = slot + i * width + v * lanes
                            store_vector(totals, at, lanes, vector(totals, at, lanes) + sums[i, v])
        valid: int | Expr = width
        if columns % width:
            valid = T.min(integer(width), integer(columns) - panel * width)

        def store(row: Expr, at: Expr, lane: Expr) -> None:
            index = [*unflatten(row, sizes), panel * width + lane]
            value = totals[at + lane]
            if scale is not None:
                value = value * scale[index[-1]]
            if args["bias"] is not None:
                value = value + At(k, group.nodes)(args["bias"], broadcast(index, args["bias"]))
            store_result(group, k, index, value)

        for number, edge, tall in tiles:
            with k.loop(number) as position, k.loop(tall) as i:
                row = T.Bind(edge(position) + i)
                at = T.Bind(mine + (position * tall + i if whole else row) * width)
                vector_loop(k, valid, lanes, lambda lane: store(row, at, lane))  # noqa: B023


@dataclass(frozen=True)
class _Codes:
    """The codes in a kernel's memory: uint8 [panel][byte of a row][row of the panel], the first piece in the lowest
    `field` bits of a byte."""

    buffer: tirx.Buffer
    field: int
    bytes: int
    width: int

    @staticmethod
    def of(k: KernelBuilder, weight: Codewords, codewords: int, width: int) -> _Codes:
        rows, pieces = (int(size) for size in shape_of(weight.indices))
        field = next(field for field in (1, 2, 4, 8) if 2**field >= codewords)
        together, panels = 8 // field, -(-rows // width)
        count = -(-pieces // together)
        size = panels * count * width
        if not k.packs_at_load(weight.codes, size, weight_formats.unpacking_code(weight.indices)):
            padded = np.zeros((panels * width, count * together), np.uint8)
            padded[:rows, :pieces] = k.around.stored(weight.indices)
            shifts = np.arange(0, 8, field, dtype=np.uint8)
            packed = np.bitwise_or.reduce(padded.reshape(panels, width, count, together) << shifts, axis=-1)
            note = f"{weight.codebook.name}: codes in panels of {width}"
            return _Codes(k.constant(packed.transpose(0, 2, 1), note), field, count, width)

        def fill(builder: KernelBuilder, source: TensorView, target: tirx.Buffer) -> None:
            at = At(builder, [] if weight.codes is weight.indices else [weight.indices])

            def put(index: list[Expr]) -> None:
                panel, byte, lane = index
                row, whole = T.Bind(panel * width + lane), T.uint8(0)
                for place in range(together):
                    piece = byte * together + place
                    with at.guard(row < rows, piece < pieces):
                        code = T.shift_left(at(weight.indices, [row, piece]), T.uint8(place * field))
                    whole = T.bitwise_or(whole, code)
                T.buffer_store(target, whole, [(panel * count + byte) * width + lane])

            nest(builder, [panels, count, width], put)

        key = ("panels of codewords", width, field)
        return _Codes(k.packed(Packed(weight.codes, key, size, fill, "uint8")), field, count, width)

    def load(self, panel: Expr, piece: Expr, lane: int | Expr, lanes: int, dtype: str) -> Expr:
        """Codes of `lanes` rows of a panel, from row `lane` on, as integers of `dtype`."""
        together = 8 // self.field
        at = (panel * self.bytes + piece // together) * self.width + lane
        if lanes == 1:
            code = T.cast(self.buffer[at], dtype)
        else:
            code = T.cast(vector(self.buffer, at, lanes), f"{dtype}x{lanes}")
        if together == 1:
            return code

        def each(value: Expr) -> Expr:
            return T.broadcast(value, lanes) if lanes > 1 else value

        shift = T.cast(piece % together * self.field, dtype)
        mask = constant(2**self.field - 1, dtype)
        return T.bitwise_and(T.shift_right(code, each(shift)), each(mask))


def _decoder(k: KernelBuilder, codes: _Codes, codebook: Array) -> Decoder:
    """decode(panel, first, words, pieces, space): write [piece][element][row of the panel] for `pieces` pieces from the
    first on, all of them with the codebook `space`."""
    codewords, d = codebook.shape[-2:]
    if k.isa.bytes == 64 and codes.width == 32 and codebook.dtype == np.float16:
        return _in_registers(k, codes, codebook)
    book = k.constant(codebook.astype(np.float32), "codebook")

    def decode(panel: Expr, first: Expr, words: tirx.Buffer, pieces: int | Expr, space: int | Expr) -> None:
        with k.loop(pieces) as piece, k.loop(codes.width) as lane:
            code = codes.load(panel, first + piece, lane, 1, "int64")
            word = T.Bind((space * codewords + code) * d)
            for t in range(d):
                T.buffer_store(words, book[word + t], [(piece * d + t) * codes.width + lane])

    return decode


def _in_registers(k: KernelBuilder, codes: _Codes, codebook: Array) -> Decoder:
    """32 rows at a time: `vpermi2w` looks up among 64 words, bits 6 and 7 of the index choose among its results."""
    count, d = codebook.shape[-2:]
    words_of = codebook.reshape(-1, count, d)
    padded = np.zeros((len(words_of), d, max(64, count)), np.float16)
    padded[..., :count] = words_of.transpose(0, 2, 1)
    entries = padded.shape[-1]
    book = k.constant(padded.view(np.int16), "codebook, an element of all words after the other")
    permute = T.llvm_lookup_intrinsic_id("llvm.x86.avx512.vpermi2var.hi.512")

    def decode(panel: Expr, first: Expr, words: tirx.Buffer, pieces: int | Expr, space: int | Expr) -> None:
        with k.loop(d) as t:
            own = T.Bind((space * d + t) * entries)
            tables = [T.Bind(vector(book, own + i, 32)) for i in range(0, entries, 32)]
            with k.loop(pieces) as piece:
                index = T.Bind(codes.load(panel, first + piece, 0, 32, "int16"))
                level = [
                    T.Bind(T.call_llvm_pure_intrin(permute, tables[i], index, tables[i + 1], dtype="int16x32"))
                    for i in range(0, len(tables), 2)
                ]
                bit = 64
                while len(level) > 1:
                    mask = T.bitwise_and(index, T.broadcast(T.int16(bit), 32))
                    upper = tirx.NE(mask, T.broadcast(T.int16(0), 32))
                    level = [T.Bind(T.Select(upper, level[i + 1], level[i])) for i in range(0, len(level), 2)]
                    bit *= 2
                floats = scalars.widened(T.reinterpret("float16x32", level[0]), k.isa.target)
                store_vector(words, (piece * d + t) * 32, 32, floats)

    return decode
