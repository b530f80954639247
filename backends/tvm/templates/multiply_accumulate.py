"""The inner step of every matrix product, by instruction set: what a vector multiply-add takes, and in which order.

The left operand is broadcast: one element, or a group of `depth` neighbouring ones for dot-product instructions. The
right operand is packed so that a vector holds `lanes` output channels, each with its `depth` elements side by side.
What Arm's instructions do beyond that is in `arm_multiply_accumulate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import brain_float
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, store_vector, vector
from graphc.backends.tvm.operations import BFLOAT16

# The sign bits of four bytes: 0x80808080.
SIGN_BITS = -0x7F7F7F80


@dataclass(frozen=True)
class MultiplyAccumulate:
    """One multiply-add of vectors. `left` is the type in which it reads the left operand, `depth` elements at a time;
    `right` the packed type; `rows` x `vectors` accumulators fit the registers beside the operands."""

    name: str
    left: str
    right: str
    accumulator: str
    depth: int
    lanes: int
    rows: int
    vectors: int
    step: Callable[[Expr, Expr, Expr], Expr]

    @property
    def together(self) -> int:
        """Rows of the left operand that are multiplied at once: tiles have a multiple of it where they can."""
        return 1

    @property
    def width(self) -> int:
        """Output channels of a full register tile."""
        return self.lanes * self.vectors

    def narrowed(self, columns: int) -> MultiplyAccumulate:
        """The multiply-add with no more vectors than the columns fill."""
        return replace(self, vectors=max(1, min(self.vectors, -(-columns // self.lanes))))

    @property
    def unit(self) -> int:
        """What the packed run is padded to a multiple of."""
        return self.depth

    def narrowed_to(self, lanes: int) -> MultiplyAccumulate:
        """The same on shorter vectors, where there are fewer lanes to fill: x86 has three lengths."""
        if lanes >= self.lanes or self.name not in ("fma", "vpdpbusd"):
            return self
        kept = next(count for count in (8, 4) if count <= max(lanes, 4))
        if self.name == "fma":
            return replace(self, lanes=kept, vectors=1)
        return _dot_product("vpdpbusd", f"llvm.x86.avx512.vpdpbusd.{32 * kept}", self.left, kept, self.rows, 1)

    def start(self, sums: tirx.Buffer, rows: int, initial: Callable[[int, int], Expr]) -> None:
        """Set the sums of `rows` rows: initial(column, count) gives those of `count` columns, the same in each row."""
        for v in range(self.vectors):
            value = T.Bind(initial(v * self.lanes, self.lanes))
            for row in range(rows):
                store_vector(sums, self._slot(row, v), self.lanes, value)

    def accumulate(
        self, k: KernelBuilder, sums: tirx.Buffer, left: tirx.Buffer, starts: list[Expr], right: tirx.Buffer,
        panel: Expr, steps: Expr, fetch: Callable[[Expr], None],
    ) -> None:  # fmt: skip
        """sums[row, column] += left[starts[row] + j] * right[panel + j, column] for j in `steps` groups of `depth`.

        fetch(step) asks for what comes later in the right operand, where it does not come by itself.
        """
        with k.loop(steps) as step:
            fetch(step)
            packed = [
                T.Bind(self.load_right(right, panel + step * (self.width * self.depth) + v * self.lanes * self.depth))
                for v in range(self.vectors)
            ]
            for row, start in enumerate(starts):
                broadcast = T.Bind(self.load_left(left, start + step * self.depth))
                for v in range(self.vectors):
                    slot = self._slot(row, v)
                    store_vector(
                        sums, slot, self.lanes, self.step(vector(sums, slot, self.lanes), broadcast, packed[v])
                    )

    def results(self, sums: tirx.Buffer, rows: int) -> Iterator[tuple[int, int, int, Expr]]:
        """The sums as vectors of neighbouring columns: row, first column, number of columns, vector."""
        for row in range(rows):
            for v in range(self.vectors):
                yield row, v * self.lanes, self.lanes, vector(sums, self._slot(row, v), self.lanes)

    def _slot(self, row: int, v: int) -> Expr:
        return T.int64(row * self.width + v * self.lanes)

    def load_left(self, buffer: tirx.Buffer, start: Expr) -> Expr:
        """The group at `start`, in every lane. An operand of the other signedness has its sign bits flipped."""
        if self.depth == 1:
            return T.broadcast(buffer[start], self.lanes)
        group = T.reinterpret("int32", vector(buffer, start, self.depth))
        if str(buffer.ty.dtype) != self.left:
            group = T.bitwise_xor(group, T.int32(SIGN_BITS))
        return T.reinterpret(f"{self.left}x{self.lanes * self.depth}", T.broadcast(group, self.lanes))

    def load_right(self, buffer: tirx.Buffer, start: Expr) -> Expr:
        return vector(buffer, start, self.lanes * self.depth)

    def flip(self, dtype: str) -> int:
        """What has to be added to the left operand as this instruction sees it to get its value in `dtype`."""
        if dtype == self.left or self.left not in ("int8", "uint8"):
            return 0
        return -128 if dtype == "int8" else 128

    def reads(self, dtype: str) -> bool:
        """Whether the operand can be read from memory of this type."""
        return dtype == self.left or (self.left in ("int8", "uint8") and dtype in ("int8", "uint8"))


def floating(isa: InstructionSet, dtype: str = "float32") -> MultiplyAccumulate:
    """float32: a fused multiply-add of vectors (where the target has one)."""
    if dtype == BFLOAT16:
        return brain(isa)
    from graphc.backends.tvm.templates import arm_multiply_accumulate

    if isa.target.arch == "arm64":
        return arm_multiply_accumulate.fmla()
    lanes = isa.lanes("float32")
    rows, vectors = {64: (14, 2), 32: (6, 2)}.get(isa.bytes, (6, 2))
    return MultiplyAccumulate(
        "fma", "float32", "float32", "float32", 1, lanes, rows, vectors, lambda sums, left, right: sums + left * right
    )


def brain(isa: InstructionSet) -> MultiplyAccumulate:
    """bfloat16 times bfloat16, sums in float32: pairs by a dot product, or widened and by multiply-adds."""
    lanes = isa.lanes("float32")
    if isa.target.has("avx512bf16") and isa.bytes == 64:
        return MultiplyAccumulate("vdpbf16ps", BFLOAT16, BFLOAT16, "float32", 2, lanes, 14, 2, brain_float.dot)
    rows, vectors = (10, 2) if isa.registers == 32 else (4, 2)
    return MultiplyAccumulate(
        "fma of bfloat16", BFLOAT16, BFLOAT16, "float32", 2, lanes, rows, vectors, brain_float.multiply
    )


def integer(isa: InstructionSet) -> MultiplyAccumulate:
    """int8 or uint8 times int8, exact sums in int32: a dot-product instruction, or products of widened operands."""
    from graphc.backends.tvm.templates import arm_multiply_accumulate  # which is made of this module's class

    has = isa.target.has
    if has("avx512vnni") and isa.bytes == 64:
        return _dot_product("vpdpbusd", "llvm.x86.avx512.vpdpbusd.512", "uint8", 16, 14, 2)
    if has("avxvnni") and isa.bytes == 32:
        return _dot_product("vpdpbusd", "llvm.x86.avx512.vpdpbusd.256", "uint8", 8, 6, 2)
    if has("i8mm"):
        return arm_multiply_accumulate.smmla()
    if has("dotprod"):
        return arm_multiply_accumulate.sdot()
    if isa.target.arch == "arm64":
        # A product of int16 and a sum of int32 is one `smlal`.
        return MultiplyAccumulate("smlal", "int16", "int8", "int32", 1, 8, 6, 2, _widening)
    lanes = isa.bytes // 4
    name = {16: "llvm.x86.sse2.pmadd.wd", 32: "llvm.x86.avx2.pmadd.wd", 64: "llvm.x86.avx512.pmaddw.d.512"}[isa.bytes]

    def pairs(sums: Expr, left: Expr, right: Expr) -> Expr:
        """Products of int16 pairs, each pair summed to int32; unlike vpmaddubsw it cannot saturate."""
        return sums + intrinsic(name, f"int32x{lanes}", left, T.cast(right, f"int16x{2 * lanes}"))

    return MultiplyAccumulate("pmaddwd", "int16", "int8", "int32", 2, lanes, 10 if isa.registers == 32 else 4, 2, pairs)


def dot_product(isa: InstructionSet) -> MultiplyAccumulate:
    """As `integer`, but where that multiplies pairs of rows: single rows, by a dot product."""
    from graphc.backends.tvm.templates import arm_multiply_accumulate

    return arm_multiply_accumulate.sdot() if isa.target.has("dotprod") else integer(isa)


def words(isa: InstructionSet) -> MultiplyAccumulate | None:
    """int16 times int16 in pairs, sums in int32 modulo 2^32; None where the target has no such dot product."""
    rows, lanes, name = 6, 8, "llvm.x86.avx512.vpdpwssd.256"
    if isa.target.has("avx512vnni") and isa.bytes == 64:
        rows, lanes, name = 14, 16, "llvm.x86.avx512.vpdpwssd.512"
    elif not (isa.target.has("avxvnni") and isa.bytes == 32):
        return None

    def step(sums: Expr, a: Expr, b: Expr) -> Expr:
        return intrinsic(name, f"int32x{lanes}", sums, a, b)

    return MultiplyAccumulate("vpdpwssd", "int16", "int16", "int32", 2, lanes, rows, 2, step)


def intrinsic(name: str, dtype: str, *args: Expr) -> Expr:
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *args, dtype=dtype)


def _dot_product(name: str, llvm: str, left: str, lanes: int, rows: int, vectors: int) -> MultiplyAccumulate:
    def step(sums: Expr, a: Expr, b: Expr) -> Expr:
        return intrinsic(llvm, f"int32x{lanes}", sums, a, b)

    return MultiplyAccumulate(name, left, "int8", "int32", 4, lanes, rows, vectors, step)


def _widening(sums: Expr, left: Expr, right: Expr) -> Expr:
    lanes = 8
    return sums + T.cast(left, f"int32x{lanes}") * T.cast(T.cast(right, f"int16x{lanes}"), f"int32x{lanes}")
