"""Multiply-adds of arm64 that take more than one group of the left operand at a time.

ByLane   `fmla` and `sdot` take the group that they broadcast from a lane of a vector: one load of 16 bytes of a row
         serves four steps, and the inner loop has no broadcasts.
ByPairs  `smmla` and `bfmmla` multiply two rows of the left operand by two columns of the right one: a sum is a vector
         of 2 x 2 results. Two rows are brought together by `zip1` and `zip2`, so the left operand needs no packing.

Tiles leave no register unused: sums, one vector of each row, and two of the right operand.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.kernel import Expr, KernelBuilder, store_vector, vector
from graphc.backends.tvm.templates.multiply_accumulate import SIGN_BITS, MultiplyAccumulate, intrinsic

VECTOR = 16  # bytes


@dataclass(frozen=True)
class Grouped(MultiplyAccumulate, ABC):
    """One load of the left operand brings `groups` groups."""

    shapes: tuple[tuple[int, int], ...] = ()  # rows and vectors of tiles to choose from

    @property
    @abstractmethod
    def groups(self) -> int: ...

    def narrowed(self, columns: int) -> MultiplyAccumulate:
        """The tile that computes `columns` columns with the fewest instructions."""

        def cost(shape: tuple[int, int]) -> float:
            rows, vectors = shape
            needed = self.needed(columns, vectors)
            panels = -(-columns // (needed * self.lanes))
            products = rows // self.together * needed * self.groups
            body = products + rows * self.together + needed * self.groups / 2 + 4
            # A last panel that is not full makes a longer epilogue.
            return panels * body / rows * (1 if columns % (needed * self.lanes) == 0 else 1.2)

        rows, vectors = min(self.shapes, key=cost)
        return replace(self, rows=rows, vectors=self.needed(columns, vectors))

    def needed(self, columns: int, vectors: int) -> int:
        """Vectors that `columns` columns fill, at most `vectors`; a whole number of 16 bytes of sums."""
        unit = max(1, 4 // self.lanes)
        return min(vectors, -(-columns // (self.lanes * unit)) * unit)

    def accumulate(
        self, k: KernelBuilder, sums: tirx.Buffer, left: tirx.Buffer, starts: list[Expr], right: tirx.Buffer,
        panel: Expr, steps: Expr, fetch: Callable[[Expr], None],
    ) -> None:  # fmt: skip
        def multiply(step: Expr, groups: int) -> None:
            """`groups` steps of the sum, from `step` on."""
            operands = self.load_groups(left, [start + step * self.depth for start in starts], groups)
            for group in range(groups):
                at = panel + (step + group) * (self.width * self.depth)
                # One vector of the right operand at a time: four would not leave registers enough.
                for v in range(self.vectors):
                    packed = T.Bind(self.load_right(right, at + v * self.lanes * self.depth))
                    for row, operand in enumerate(operands):
                        slot = self._slot(row, v)
                        total = self.step(vector(sums, slot, VECTOR // 4), operand[group], packed)
                        store_vector(sums, slot, VECTOR // 4, total)

        # Else LLVM takes the left operand of short sums out of the loop over the panels, and spills all of it.
        with T.attr(left.data, "volatile_scope", T.int32(1)):
            with k.loop(steps // self.groups) as number:
                multiply(number * self.groups, self.groups)
            if getattr(steps % self.groups, "value", None) != 0:
                with k.loop(steps % self.groups) as number:
                    multiply(steps // self.groups * self.groups + number, 1)

    @abstractmethod
    def load_groups(self, left: tirx.Buffer, starts: list[Expr], groups: int) -> list[list[Expr]]:
        """For each row of sums, `groups` neighbouring groups as `step` takes them."""

    def _read(self, left: tirx.Buffer, start: Expr, kind: str, count: int) -> Expr:
        """`count` numbers of type `kind` from memory, sign bits flipped in an operand of the other signedness."""
        elements = count * bytes_of(kind) // bytes_of(self.left)
        read = vector(left, start, elements) if elements > 1 else left[start]
        read = T.reinterpret(wide(kind, count), read)
        if str(left.ty.dtype) != self.left:
            signs = T.int32(SIGN_BITS) if kind == "int32" else T.int64(SIGN_BITS << 32 | SIGN_BITS & 0xFFFFFFFF)
            read = T.bitwise_xor(read, signs if count == 1 else T.broadcast(signs, count))
        return T.Bind(read)


def bytes_of(kind: str) -> int:
    """Of one number of a type."""
    return int("".join(c for c in kind if c.isdigit())) // 8


def wide(kind: str, count: int) -> str:
    return kind if count == 1 else f"{kind}x{count}"


@dataclass(frozen=True)
class ByLane(Grouped):
    """A group is 32 bits; it comes from a lane of a vector of four."""

    @property
    def groups(self) -> int:
        return 4

    def load_groups(self, left: tirx.Buffer, starts: list[Expr], groups: int) -> list[list[Expr]]:
        kind = "float32" if self.left == "float32" else "int32"
        operands = []
        for start in starts:
            read = self._read(left, start, kind, groups)
            lanes = [read] if groups == 1 else [tirx.Shuffle([read], [T.int32(lane)]) for lane in range(groups)]
            operands.append([self._spread(lane) for lane in lanes])
        return operands

    def _spread(self, lane: Expr) -> Expr:
        return T.reinterpret(f"{self.left}x{self.lanes * self.depth}", T.broadcast(lane, self.lanes))


@dataclass(frozen=True)
class ByPairs(Grouped):
    """A group is 64 bits of each of two rows. `lanes` is 2, the columns of a vector of the right operand; a sum holds
    [row 0 column 0, row 0 column 1, row 1 column 0, row 1 column 1]. The last of an odd number of rows counts twice."""

    @property
    def groups(self) -> int:
        return 2

    @property
    def together(self) -> int:
        return 2

    def start(self, sums: tirx.Buffer, rows: int, initial: Callable[[int, int], Expr]) -> None:
        for v in range(self.vectors):
            pair = T.reinterpret("int64", initial(v * self.lanes, self.lanes))
            value = T.Bind(T.reinterpret(f"{self.accumulator}x4", T.broadcast(pair, 2)))
            for row in range(-(-rows // 2)):
                store_vector(sums, self._slot(row, v), 4, value)

    def load_groups(self, left: tirx.Buffer, starts: list[Expr], groups: int) -> list[list[Expr]]:
        kind = f"{self.left}x{VECTOR // bytes_of(self.left)}"
        operands = []
        for first in range(0, len(starts), 2):
            pair = [
                self._read(left, start, "int64", groups)
                for start in (starts[first], starts[min(first + 1, len(starts) - 1)])
            ]
            together = [tirx.Shuffle(pair, [T.int32(g), T.int32(groups + g)]) for g in range(groups)]
            operands.append([T.Bind(T.reinterpret(kind, value)) for value in together])
        return operands

    def results(self, sums: tirx.Buffer, rows: int) -> Iterator[tuple[int, int, int, Expr]]:
        for row in range(rows):
            low = row % 2 * 2
            for v in range(0, self.vectors, 2):
                both = [vector(sums, self._slot(row // 2, w), 4) for w in (v, v + 1)]
                lanes = [T.int32(lane) for lane in (low, low + 1, low + 4, low + 5)]
                yield row, v * self.lanes, 4, tirx.Shuffle(both, lanes)

    def _slot(self, row: int, v: int) -> Expr:
        return T.int64((row * self.vectors + v) * 4)


def sdot() -> MultiplyAccumulate:
    def step(sums: Expr, left: Expr, right: Expr) -> Expr:
        # The lane is taken of the last operand.
        return intrinsic("llvm.aarch64.neon.sdot.v4i32.v16i8", "int32x4", sums, right, left)

    return ByLane("sdot", "int8", "int8", "int32", 4, 4, 6, 4, step, ((6, 4), (4, 6), (8, 2)))


def smmla() -> MultiplyAccumulate:
    def step(sums: Expr, left: Expr, right: Expr) -> Expr:
        return intrinsic("llvm.aarch64.neon.smmla.v4i32.v16i8", "int32x4", sums, left, right)

    return ByPairs("smmla", "int8", "int8", "int32", 8, 2, 4, 8, step, ((4, 8), (4, 12), (8, 4)))


def fmla() -> MultiplyAccumulate:
    return ByLane(
        "fmla", "float32", "float32", "float32", 1, 4, 6, 4, lambda sums, left, right: sums + left * right,
        ((6, 4), (4, 6), (8, 2)),
    )  # fmt: skip
