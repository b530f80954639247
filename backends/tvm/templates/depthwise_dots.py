"""Depthwise convolutions of 8-bit integers by dot-product instructions: a vector of channels, four image rows deep.

The bytes of four rows of the image are interleaved so that each channel's four lie side by side. One dot product then
takes all taps of a filter's column that lie in these rows, and rows of results that share image rows share the quads:

    quad[channel] = (image[y], image[y + 1], image[y + 2], image[y + 3])       3 x 3 taps, two rows of results:
    sum[y]     += quad . (w[0], w[1], w[2], 0)
    sum[y + 1] += quad . (0, w[0], w[1], w[2])
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.geometry import Geometry
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer, store_vector, vector
from graphc.backends.tvm.loops import PARALLEL_WORK, unflatten, vector_loop
from graphc.backends.tvm.operations import dtype_of, name_of, rank_of
from graphc.backends.tvm.sizes import product
from graphc.backends.tvm.templates import depthwise, multiply_accumulate
from graphc.backends.tvm.templates.convolution import source_image
from graphc.backends.tvm.templates.multiply_accumulate import MultiplyAccumulate
from graphc.backends.tvm.templates.register_tile import store_result
from graphc.backends.tvm.templates.right_operand import RightOperand

NAME = "depthwise convolution"
OPERATORS = depthwise.OPERATORS

DEPTH = 4


@dataclass(frozen=True)
class Rows:
    """How `count` rows of results draw on image rows: `offsets` from the first, in quads; the last may repeat."""

    count: int
    offsets: tuple[int, ...]
    geometry: Geometry

    @staticmethod
    def of(count: int, g: Geometry) -> Rows:
        used = sorted({r * g.stride[0] + i * g.dilation[0] for r in range(count) for i in range(g.kernel[0])})
        used += [used[-1]] * (-len(used) % DEPTH)
        return Rows(count, tuple(used), g)

    @property
    def quads(self) -> int:
        return len(self.offsets) // DEPTH

    def taps(self, row: int, quad: int) -> list[int | None]:
        """For each byte of a quad the row of the filter that meets it, in a row of results."""
        taps: list[int | None] = []
        for at in range(quad * DEPTH, (quad + 1) * DEPTH):
            tap, off = divmod(self.offsets[at] - row * self.geometry.stride[0], self.geometry.dilation[0])
            again = at > 0 and self.offsets[at] == self.offsets[at - 1]
            taps.append(tap if off == 0 and 0 <= tap < self.geometry.kernel[0] and not again else None)
        return taps

    @property
    def products(self) -> list[tuple[int, int]]:
        """The pairs (row of results, quad) that meet."""
        pairs = itertools.product(range(self.count), range(self.quads))
        return [pair for pair in pairs if any(tap is not None for tap in self.taps(*pair))]

    @property
    def cost(self) -> float:
        """Instructions for one result: four to make a quad, one for each dot product."""
        columns = min(self.geometry.stride[1], self.geometry.kernel[1])
        return (DEPTH * self.quads * columns + len(self.products) * self.geometry.kernel[1]) / self.count


def matches(group: Group, isa: InstructionSet) -> str | None:
    reason = depthwise.matches(group, isa)
    if reason is not None:
        return reason
    g = Geometry.of(group.core)
    mac = multiply_accumulate.dot_product(isa)
    if name_of(group.core) == "aten.convolution.default" or mac.depth != DEPTH:
        return "no dot product for this type"
    if g.kernel[0] < 2 or g.channels < DEPTH or group.core.args[1].op != "get_attr":  # type: ignore[union-attr]
        return "a filter of one row, few channels, or weights that are computed"
    return None


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.core
    g = Geometry.of(anchor)
    mac = multiply_accumulate.dot_product(k.isa).narrowed_to(g.channels)
    # Channels of a block: two vectors of sums where a vector holds but four, for rows are read eight bytes at a time.
    vectors = 2 if mac.lanes == 4 and g.channels >= 8 else 1
    lanes = mac.lanes * vectors
    height, width = (int(size) for size in g.result)
    counts = range(1, min(height, 4) + 1)
    best = min(counts, key=lambda count: Rows.of(count, g).cost)
    rows = Rows.of(k.parameter("rows", default=best, options=counts), g)
    most = max(1, (16 if k.isa.registers == 32 else 6) // rows.count // vectors)
    choices = range(1, min(most, width) + 1)
    columns = k.parameter("columns", default=min(choices, key=lambda c: _cost(c, width, rows)), options=choices)

    # An image of bytes of either sign, one channel after the other.
    reading = MultiplyAccumulate("depthwise", dtype_of(g.x), "int8", "int32", 1, lanes, 8, 1, lambda sums, a, b: sums)
    image = source_image(group, k, g, reading, joined=False, run=g.channels)
    weights = k.around.array(g.weight)
    assert weights is not None
    starts = [min(block * lanes, g.channels - lanes) for block in range(-(-g.channels // lanes))]
    packed = _packed(weights.reshape(g.channels, *g.kernel), rows, starts, lanes)
    filters = k.constant(packed, f"{g.weight.name} in quads")
    right = RightOperand(g.weight, 1, g.channels, g.kernel[0] * g.kernel[1], 1, _element(g, rank_of(anchor)), "quads")
    shift = mac.flip(dtype_of(g.x)) - g.zero
    initial = right.initial(k, g.bias, shift, 1)
    correction = None if initial is not None else right.correction(k, g.bias, shift)

    def quad(n: Expr, first: Expr, y: Expr, column: Expr, number: int) -> list[Expr]:
        """The bytes of four image rows, the four of one channel side by side: `vectors` vectors."""
        offsets = rows.offsets[number * DEPTH : (number + 1) * DEPTH]
        loads = [vector(image.buffer, image.offset([n, first, y + offset, column]), lanes) for offset in offsets]
        if vectors == 1:
            together = [_interleaved(loads, lanes, range(lanes))]
        else:
            pairs = [
                T.reinterpret(f"int16x{lanes}", _interleaved(loads[at : at + 2], lanes, range(lanes))) for at in (0, 2)
            ]
            together = [_interleaved(pairs, lanes, range(at, at + mac.lanes)) for at in range(0, lanes, mac.lanes)]
        wide = DEPTH * mac.lanes
        together = [T.reinterpret(f"int8x{wide}", value) for value in together]
        if str(image.buffer.ty.dtype) != mac.left:
            together = [T.bitwise_xor(value, T.broadcast(T.int8(-128), wide)) for value in together]
        return [T.Bind(T.reinterpret(f"{mac.left}x{wide}", value)) for value in together]

    def tile(n: Expr, top: Expr, left: Expr, block: Expr, first: Expr) -> None:
        sums = k.local(rows.count * columns * lanes, "int32")
        slot = {place: at * lanes for at, place in enumerate(itertools.product(range(rows.count), range(columns)))}
        for v in range(vectors):
            start = T.broadcast(T.int32(0), mac.lanes)
            if initial is not None:
                start = T.Bind(initial(first + v * mac.lanes, mac.lanes))
            for at in slot.values():
                store_vector(sums, integer(at + v * mac.lanes), mac.lanes, start)
        size = DEPTH * mac.lanes
        base = block * (len(rows.products) * g.kernel[1] * size * vectors)
        taps = {
            (j, pair, v): T.Bind(vector(filters, base + ((j * len(rows.products) + at) * vectors + v) * size, size))
            for j in range(g.kernel[1])
            for at, pair in enumerate(rows.products)
            for v in range(vectors)
        }
        reached = sorted({c * g.stride[1] + j * g.dilation[1] for c in range(columns) for j in range(g.kernel[1])})
        for offset in reached:
            x = left * g.stride[1] + offset
            quads = [quad(n, first, top * g.stride[0], x, number) for number in range(rows.quads)]
            for c, j in itertools.product(range(columns), range(g.kernel[1])):
                if c * g.stride[1] + j * g.dilation[1] != offset:
                    continue
                for pair, v in itertools.product(rows.products, range(vectors)):
                    at = integer(slot[pair[0], c] + v * mac.lanes)
                    total = mac.step(vector(sums, at, mac.lanes), quads[pair[1]][v], taps[j, pair, v])
                    store_vector(sums, at, mac.lanes, total)
        results = k.local(rows.count * columns * lanes, "int32")
        for at in range(0, rows.count * columns * lanes, mac.lanes):
            store_vector(results, integer(at), mac.lanes, vector(sums, integer(at), mac.lanes))
        with k.loop(rows.count) as r, k.loop(columns) as c:

            def store(lane: Expr) -> None:
                channel = first + lane
                total = results[(r * columns + c) * lanes + lane]
                if correction is not None:
                    total = total + correction(channel)
                index = [n, channel, top + r, left + c] if rank_of(anchor) == 4 else [n, channel, left + c]
                store_result(group, k, index, total)

            vector_loop(k, lanes, lanes, store)

    extents = [k.size(g.batch), integer(-(-height // rows.count)), integer(len(starts))]
    work = k.ranges.maximum(product([g.batch, *g.result, g.channels])) * g.kernel[0] * g.kernel[1]
    with k.loop(extents[0] * extents[1] * extents[2], work >= PARALLEL_WORK) as flat:
        n, vertical, block = unflatten(flat, extents)
        top = T.Bind(T.min(vertical * rows.count, integer(height - rows.count)))
        first = T.Bind(T.min(block * lanes, integer(g.channels - lanes)))
        with k.loop(-(-width // columns)) as number:
            tile(n, top, T.Bind(T.min(number * columns, integer(width - columns))), block, first)


def _interleaved(vectors: list[Expr], length: int, lanes: range) -> Expr:
    """These lanes of all vectors, which have `length`, lane by lane."""
    return tirx.Shuffle(vectors, [T.int32(at * length + lane) for lane in lanes for at in range(len(vectors))])


def _cost(columns: int, width: int, rows: Rows) -> tuple[int, int]:
    """What tiles of so many columns cost, in instructions; the widest of equals."""
    g = rows.geometry
    reached = {c * g.stride[1] + j * g.dilation[1] for c in range(columns) for j in range(g.kernel[1])}
    dots = len(rows.products) * g.kernel[1] * columns
    return -(-width // columns) * (DEPTH * rows.quads * len(reached) + dots), -columns


def _packed(weights: np.ndarray[Any, Any], rows: Rows, starts: list[int], lanes: int) -> np.ndarray[Any, Any]:
    """[block, column of the filter, pair, channel, byte of a quad], from [channel, row, column]."""
    result = np.zeros((len(starts), weights.shape[2], len(rows.products), lanes, DEPTH), np.int8)
    for at, pair in enumerate(rows.products):
        for byte, tap in enumerate(rows.taps(*pair)):
            if tap is not None:
                for block, first in enumerate(starts):
                    result[block, :, at, :, byte] = weights[first : first + lanes, tap].T
    return result


def _element(g: Geometry, rank: int) -> Any:
    def element(matrix: Any, n: Any, tap: Any, j: Any) -> list[Any]:
        row, column = tap // g.kernel[1], tap % g.kernel[1]
        return [n, j, row, column] if rank == 4 else [n, j, column]

    return element
