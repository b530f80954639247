"""gather_sum over int8 tables: products with vector-quantized weights, one look-up in registers for d multiply-adds.

    out[m, n] = epilogue(sum over groups g of scale[m, g] * (sum over j in g of q[m, j, indices[n, j]]))

Indices are packed at compile time as [rows / (64 * R)][j][R][64]: each vector of indices belongs to one j, so that one
table serves all of its lanes (Andre et al., "Cache locality is not enough: PQ Fast Scan", 2015, put tables into
registers; here a table is a piece of the activation). Entries add up in int16, two rows a lane: the sum of the lanes
as they are, and of their upper bytes, give both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm.tirx as tirx
from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.evaluate import At
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, Packed, TensorView, integer, store_vector, vector
from graphc.backends.tvm.loops import nest, unflatten, vector_loop
from graphc.backends.tvm.operations import arguments, name_of, shape_of
from graphc.backends.tvm.sizes import product
from graphc.backends.tvm.tabulated import LONGEST, WIDTHS, QuantizedTables
from graphc.backends.tvm.templates.byte_tables import ByteTables
from graphc.backends.tvm.templates.register_tile import store_result
from graphc.backends.tvm.weight_formats import unpacking_code

NAME = "table lookup"
OPERATORS = ("graphc.gather_sum.default",)


def matches(group: Group, isa: InstructionSet) -> str | None:
    anchor = group.anchor
    if anchor is None or name_of(anchor) not in OPERATORS:
        return "no gather_sum"
    if QuantizedTables.of(anchor) is None:
        return (
            f"no int8 tables of {', '.join(map(str, WIDTHS))} entries, at most {LONGEST} of which share a scale, with "
            "stored indices: write them so with tabulate"
        )
    return None


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.core
    source = QuantizedTables.of(anchor)
    assert source is not None
    columns, steps = (int(size) for size in shape_of(arguments(anchor)["indices"]))
    codewords = int(shape_of(arguments(anchor)["tables"])[-1])
    look = ByteTables.of(k.isa, codewords)
    if codewords > look.reach:
        steps_of = -(-codewords // look.reach)
        k.reason = (
            f"a look-up among {codewords} takes {steps_of} of {look.name} on this CPU; {look.reach} codewords take one"
        )
    lanes = look.lanes
    vectors = -(-columns // lanes)
    most = k.parameter("vectors", default=8 if k.isa.registers == 32 else 4, options=(1, 2, 4, 6, 8))
    height = _height(vectors, most)
    indices = _indices(k, arguments(anchor)["indices"], lanes, height, f"packed for {look.name}")
    q, scale = k.tensor(source.q), k.tensor(source.scale)
    leading = shape_of(anchor)[:-1]
    rows, sizes = k.size(product(leading)), [k.size(size) for size in leading]
    groups = steps // source.pieces

    def block(first: Expr, count: int) -> None:
        """`count` vectors of results, from vector `first` on."""
        start = T.Bind(first * (steps * lanes))
        with k.loop(rows) as row:
            table, scales = T.Bind(row * (steps * codewords)), T.Bind(row * groups)
            sums = k.local(count * lanes, "float32")
            wide = k.isa.lanes("float32")
            for place in range(0, count * lanes, wide):
                store_vector(sums, integer(place), wide, T.broadcast(T.float32(0), wide))
            with k.loop(groups) as number:
                both, upper = k.local(count * lanes // 2, "int16"), k.local(count * lanes // 2, "int16")
                _clear(both, upper, count, lanes, source.pieces)
                with k.loop(source.pieces) as piece:
                    step = T.Bind(number * source.pieces + piece)
                    parts = look.load(q.buffer, table + step * codewords, codewords)
                    for v in range(count):
                        index = vector(indices, start + (step * count + v) * lanes, lanes)
                        found = T.Bind(T.reinterpret(f"uint16x{lanes // 2}", look.look(parts, index)))
                        _add(both, v, lanes // 2, found)
                        _add(upper, v, lanes // 2, T.shift_right(found, T.broadcast(T.uint16(8), lanes // 2)))
                factor = T.Bind(T.broadcast(scale.buffer[scales + number], wide))
                for v in range(count):
                    _scaled(sums, both, upper, v, lanes, wide, factor)
            valid: int | Expr = count * lanes
            if columns % lanes:
                valid = T.min(integer(count * lanes), integer(columns) - first * lanes)
            position = unflatten(row, sizes)
            vector_loop(k, valid, wide, lambda n: store_result(group, k, [*position, first * lanes + n], sums[n]))

    whole, rest = divmod(vectors, height)
    with k.loop(whole + (rest > 0), parallel=vectors > height) as number:
        if rest and whole:
            with T.If(number < whole):
                with T.Then():
                    block(number * height, height)
                with T.Else():
                    block(integer(whole * height), rest)
        else:
            block(number * height, height if whole else rest)


def _height(vectors: int, most: int) -> int:
    """Vectors that a thread takes at once: as many as fit the registers, where two threads still share evenly."""
    options = range(min(most, vectors), max(0, min(most, vectors) // 2), -1)
    return min(options, key=lambda height: (-(-vectors // (2 * height)) * 2 * height, -height))


def pack(codes: np.ndarray[Any, Any], lanes: int, height: int) -> np.ndarray[Any, Any]:
    """Indices [N, J] as int8 [block][j][vector][lane], the last block of fewer vectors; padded rows look up entry 0.

    Of a vector's rows the first half lies in the even lanes: they leave the sums as one vector.
    """
    columns, steps = codes.shape
    vectors = -(-columns // lanes)
    padded = np.zeros((vectors * lanes, steps), np.uint8)
    padded[:columns] = codes
    split = padded.reshape(vectors, 2, lanes // 2, steps).transpose(0, 3, 2, 1).reshape(vectors, steps, lanes)
    blocks = [split[first : first + height].transpose(1, 0, 2).ravel() for first in range(0, vectors, height)]
    packed: np.ndarray[Any, Any] = np.concatenate(blocks).view(np.int8)
    return packed


def _indices(k: KernelBuilder, indices: fx.Node, lanes: int, height: int, note: str) -> tirx.Buffer:
    """The same in a kernel's memory, made at load of codes in fewer bits."""
    rows, steps = (int(size) for size in shape_of(indices))
    codes: fx.Node = indices if indices.op == "get_attr" else indices.args[0]  # type: ignore[assignment]
    vectors = -(-rows // lanes)
    size = vectors * lanes * steps
    if not k.packs_at_load(codes, size, unpacking_code(indices)):
        return k.constant(pack(k.around.stored(indices), lanes, height), f"{indices.name} {note}")

    def fill(builder: KernelBuilder, source: TensorView, target: tirx.Buffer) -> None:
        at = At(builder, [] if codes is indices else [indices])

        def put(index: list[Expr]) -> None:
            v, step, lane = index
            first = T.Bind(v // height * height)
            row = T.Bind(v * lanes + lane % 2 * (lanes // 2) + lane // 2)
            place = T.Bind(first * steps * lanes + (step * T.min(integer(height), vectors - first) + v - first) * lanes)
            with at.guard(row < rows):
                code = at(indices, [row, step])
            T.buffer_store(target, T.Select(row < rows, T.reinterpret("int8", code), T.int8(0)), [place + lane])

        nest(builder, [vectors, steps, lanes], put)

    return k.packed(Packed(codes, ("tables", lanes, height), size, fill, "int8"))


def _clear(both: tirx.Buffer, upper: tirx.Buffer, count: int, lanes: int, pieces: int) -> None:
    """Start the sums where lifting each of `pieces` entries by 128 brings them to nought."""
    lift = -128 * pieces
    starts = ((both, _int16(lift + 256 * lift)), (upper, _int16(lift)))
    for buffer, start in starts:
        for v in range(count):
            store_vector(buffer, integer(v * (lanes // 2)), lanes // 2, T.broadcast(T.int16(start), lanes // 2))


def _int16(value: int) -> int:
    """The value modulo 2^16."""
    return (value + 2**15) % 2**16 - 2**15


def _add(sums: tirx.Buffer, v: int, half: int, value: Expr) -> None:
    slot = integer(v * half)
    store_vector(sums, slot, half, vector(sums, slot, half) + T.reinterpret(f"int16x{half}", value))


def _scaled(
    sums: tirx.Buffer, both: tirx.Buffer, upper: tirx.Buffer, v: int, lanes: int, wide: int, factor: Expr
) -> None:
    """Add one vector's int16 sums, times the scale of their tables, to the results."""
    half = lanes // 2
    odd = T.Bind(vector(upper, integer(v * half), half))
    even = T.Bind(vector(both, integer(v * half), half) - T.shift_left(odd, T.broadcast(T.int16(8), half)))
    parts = k_local_int16(even, odd, half)
    for place in range(0, lanes, wide):
        slot = integer(v * lanes + place)
        part = vector(parts, integer(place), wide)
        store_vector(sums, slot, wide, vector(sums, slot, wide) + factor * T.cast(part, f"float32x{wide}"))


def k_local_int16(even: Expr, odd: Expr, half: int) -> tirx.Buffer:
    """Both halves of a vector's rows one after the other."""
    buffer = T.alloc_buffer((2 * half,), "int16", scope="local")
    store_vector(buffer, integer(0), half, even)
    store_vector(buffer, integer(half), half, odd)
    return buffer
