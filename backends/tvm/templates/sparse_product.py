"""linear with a 2:4 or block sparse weight, read as it is stored: what is not kept costs no byte and no multiplication.

    2:4      out[m, n] = sum over kept j of value[n, j] * x[m, 4 * (j / 2) + position[n, j]]
    blocks   out[m, n] = sum over the kept blocks of n's row of blocks, and their columns c, of value[n, c] * x[m, c]

Lanes are rows of the weight. For 2:4, four neighbours of x fill a register again and again; a permutation by the
positions, two bits a lane, gives each lane its own. Threads share panels of rows, which are read once and in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm.tirx as tirx
from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import scalars, weight_formats
from graphc.backends.tvm.evaluate import At, broadcast
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer, store_vector, vector
from graphc.backends.tvm.loops import PARALLEL_WORK, nest, unflatten, vector_loop
from graphc.backends.tvm.operations import arguments, shape_of
from graphc.backends.tvm.sizes import contiguous, product
from graphc.backends.tvm.templates.register_tile import store_result, strips
from graphc.backends.tvm.weight_formats import KeptBlocks, TwoOfFour

NAME = "sparse product"
OPERATORS: tuple[str, ...] = ()
# Kept elements whose positions fill one 32-bit lane.
WORD = 16

Array = np.ndarray[Any, Any]
TileBody = Callable[[Expr, list[Expr], "Sums"], None]


def matches(group: Group, isa: InstructionSet) -> str | None:
    return None if _weight(group) is not None else "no sparse weight"


def _weight(group: Group) -> TwoOfFour | KeptBlocks | None:
    found = weight_formats.compressed(group.anchor) if group.absorbed and group.anchor is not None else None
    return found.weight if found is not None and isinstance(found.weight, TwoOfFour | KeptBlocks) else None


class Sums:
    """`rows` x `vectors` accumulators in registers."""

    def __init__(self, k: KernelBuilder, rows: int, vectors: int, lanes: int) -> None:
        self.rows, self.vectors, self.lanes = rows, vectors, lanes
        self._buffer = k.local(rows * vectors * lanes, "float32")
        for row in range(rows):
            for v in range(vectors):
                self[row, v] = T.broadcast(T.float32(0), lanes)

    def __getitem__(self, slot: tuple[int, int]) -> Expr:
        return vector(self._buffer, self._at(slot), self.lanes)

    def __setitem__(self, slot: tuple[int, int], value: Expr) -> None:
        store_vector(self._buffer, self._at(slot), self.lanes, value)

    def _at(self, slot: tuple[int, int]) -> Expr:
        return integer((slot[0] * self.vectors + slot[1]) * self.lanes)


def emit(group: Group, k: KernelBuilder) -> None:
    weight, anchor = _weight(group), group.core
    assert weight is not None
    args = arguments(anchor)
    x, depth = rows_in_line(k, group, args["input"])
    columns = int(shape_of(args["weight"])[0])
    rows = product(shape_of(args["input"])[:-1])
    lanes = k.isa.lanes("float32")
    few = k.ranges.maximum(rows) < 3
    scale = None
    if isinstance(weight, TwoOfFour):
        vectors = k.parameter("vectors", default=4 if few else 2, options=(1, 2, 4))
        body = _two_of_four(k, weight, x, depth, vectors)
        if weight.scale is not None:
            scale = k.constant(k.around.stored(weight.scale).reshape(-1), f"{weight.scale.name} of rows")
    else:
        vectors = int(shape_of(weight.values)[1]) // lanes
        body = _blocks(k, weight, x, vectors)
    panel_rows = vectors * lanes
    # Sums in half of the registers or less; the rest is for values and what they are multiplied by.
    most = max(1, k.isa.registers * 3 // 8 // vectors)
    height = min(range(1, most + 1), key=lambda r: (-(-k.ranges.maximum(rows) // r), r))
    sizes = [k.size(size) for size in shape_of(anchor)[:-1]]

    def store(row: Expr, n: Expr, value: Expr) -> None:
        index = [*unflatten(row, sizes), n]
        if scale is not None:
            value = value * scale[n]
        if args["bias"] is not None:
            value = value + At(k, group.nodes)(args["bias"], broadcast(index, args["bias"]))
        store_result(group, k, index, value)

    parallel = k.ranges.maximum(rows) * columns * depth // 32 >= PARALLEL_WORK
    with k.loop(-(-columns // panel_rows), parallel) as panel:
        for number, edge, count in strips(k, rows, height, k.ranges.minimum(rows) >= height):
            with k.loop(number) as position:
                row = T.Bind(edge(position))
                chains = max(1, 4 // vectors) if isinstance(weight, KeptBlocks) and count == 1 else 1
                sums = Sums(k, count * chains, vectors, lanes)
                body(panel, [T.Bind((row + i) * depth) for i in range(count)], sums)
                tile = k.local(count * panel_rows, "float32")
                for i in range(count):
                    for v in range(vectors):
                        total = sums[i, v]
                        for chain in range(1, chains):
                            total = total + sums[i + chain, v]
                        store_vector(tile, integer((i * vectors + v) * lanes), lanes, total)
                valid: int | Expr = panel_rows
                if columns % panel_rows:
                    valid = T.min(integer(panel_rows), integer(columns) - panel * panel_rows)
                with k.loop(count) as i:
                    first, at = panel * panel_rows, row + i
                    vector_loop(k, valid, lanes, lambda n: store(at, first + n, tile[i * panel_rows + n]))  # noqa: B023


def rows_in_line(k: KernelBuilder, group: Group, node: fx.Node) -> tuple[tirx.Buffer, int]:
    """The input's rows one after the other: as they lie, or copied."""
    shape = shape_of(node)
    depth = int(shape[-1])
    if node not in group.nodes and k.strides(node) == contiguous(shape):
        return k.tensor(node).buffer, depth
    buffer = k.workspace(product(shape), "float32")
    strides = [k.size(step) for step in contiguous(shape)]

    def copy(index: list[Expr]) -> None:
        at = integer(0)
        for position, stride in zip(index, strides, strict=True):
            at = at + position * stride
        T.buffer_store(buffer, At(k, group.nodes)(node, index), [at])

    nest(k, shape, copy, k.isa.lanes("float32"))
    return buffer, depth


def _floats(k: KernelBuilder, buffer: tirx.Buffer, start: Expr, lanes: int) -> Expr:
    """Stored values as a vector of floats."""
    value = vector(buffer, start, lanes)
    kind = str(buffer.ty.dtype)
    if kind == "float32":
        return T.Bind(value)
    return T.Bind(scalars.widened(value, k.isa.target) if kind == "float16" else T.cast(value, f"float32x{lanes}"))


def _two_of_four(k: KernelBuilder, weight: TwoOfFour, x: tirx.Buffer, depth: int, vectors: int) -> TileBody:
    """values [panel][kept][row of the panel]; positions [panel][word][row of the panel], 16 to a word."""
    lanes = k.isa.lanes("float32")
    width, kept = vectors * lanes, depth // 2
    words = -(-kept // WORD)
    rows = -(-int(shape_of(weight.values)[0]) // width) * width

    def panels(array: Array, columns: int) -> Array:
        padded = np.zeros((rows, columns), array.dtype)
        padded[: array.shape[0], : array.shape[1]] = array
        return np.ascontiguousarray(padded.reshape(-1, width, columns).transpose(0, 2, 1)).reshape(-1)

    codes = np.zeros((rows, words * WORD), np.uint32)
    found = k.around.stored(weight.positions)
    codes[: found.shape[0], :kept] = found
    shifts = 2 * np.arange(WORD, dtype=np.uint32)
    packed = np.bitwise_or.reduce(codes.reshape(rows, words, WORD) << shifts, axis=-1).view(np.int32)
    values = k.constant(panels(k.around.stored(weight.values), kept), f"{weight.values.name} in panels of {width}")
    places = k.constant(panels(packed, words), f"{weight.values.name}: positions, 16 to a word")
    pick = _Picker(k.isa)

    def body(panel: Expr, starts: list[Expr], sums: Sums) -> None:
        def word(number: Expr, count: int) -> None:
            at = T.Bind((panel * words + number) * width)
            codes = [T.Bind(vector(places, at + v * lanes, lanes)) for v in range(vectors)]
            first = T.Bind((panel * kept + number * WORD) * width)
            for j in range(0, count, 2):
                fours = [pick.fours(x, start + number * (2 * WORD) + 2 * j) for start in starts]
                for i in (j, j + 1):
                    for v in range(vectors):
                        shifted = T.Bind(T.shift_right(codes[v], T.broadcast(T.int32(2 * i), lanes)))
                        value = _floats(k, values, first + i * width + v * lanes, lanes)
                        for row in range(sums.rows):
                            sums[row, v] = sums[row, v] + value * pick.choose(fours[row], shifted)

        with k.loop(kept // WORD) as number:
            word(number, WORD)
        if kept % WORD:
            word(integer(kept // WORD), kept % WORD)

    return body


class _Picker:
    """Each lane's own of four floats, by the two lowest bits of its code."""

    def __init__(self, isa: InstructionSet) -> None:
        self._lanes = isa.lanes("float32")
        names = {16: "llvm.x86.avx512.permvar.sf.512", 8: "llvm.x86.avx2.permps"}
        self._permute = names.get(self._lanes)

    def fours(self, x: tirx.Buffer, start: Expr) -> list[Expr]:
        """What `choose` takes, from four neighbours."""
        if self._permute is None:
            return [T.Bind(T.broadcast(x[start + i], self._lanes)) for i in range(4)]
        four = T.Bind(vector(x, start, 4))
        repeats = self._lanes // 4
        return [T.Bind(tirx.Shuffle([four] * repeats, [T.int32(i) for i in range(self._lanes)]))]

    def choose(self, fours: list[Expr], codes: Expr) -> Expr:
        kind = f"float32x{self._lanes}"
        if self._permute is not None:  # higher bits choose among copies
            return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(self._permute), fours[0], codes, dtype=kind)

        def bit(number: int) -> Expr:
            mask = T.bitwise_and(codes, T.broadcast(T.int32(number), self._lanes))
            return tirx.NE(mask, T.broadcast(T.int32(0), self._lanes))

        low, high = (T.Select(bit(1), fours[i + 1], fours[i]) for i in (0, 2))
        return T.Select(bit(2), high, low)


def _blocks(k: KernelBuilder, weight: KeptBlocks, x: tirx.Buffer, vectors: int) -> TileBody:
    """values [block][column][row]; beside them each block's first column, and where each row of blocks begins."""
    lanes = k.isa.lanes("float32")
    mask, stored = k.around.stored(weight.mask), k.around.stored(weight.values)
    _, height, width = stored.shape
    values = k.constant(np.ascontiguousarray(stored.transpose(0, 2, 1)), f"{weight.values.name} by columns")
    columns = k.constant((np.nonzero(mask)[1] * width).astype(np.int32), f"{weight.values.name}: first columns")
    ends = np.concatenate([[0], np.cumsum(mask.sum(1, dtype=np.int64))])
    begins = k.constant(ends.astype(np.int32), f"{weight.values.name}: where rows of blocks begin")

    def body(panel: Expr, starts: list[Expr], sums: Sums) -> None:
        first, last = (T.Bind(T.cast(begins[panel + i], "int64")) for i in (0, 1))
        chains = sums.rows // len(starts)
        with k.loop(last - first) as number:
            block = T.Bind(first + number)
            column = T.Bind(T.cast(columns[block], "int64"))
            for c in range(width):
                given = [T.Bind(T.broadcast(x[start + column + c], lanes)) for start in starts]
                for v in range(vectors):
                    value = _floats(k, values, (block * width + c) * height + v * lanes, lanes)
                    for row, one in enumerate(given):
                        slot = (row * chains + c % chains, v)
                        sums[slot] = sums[slot] + value * one

    return body
