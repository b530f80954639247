"""Products of weight codes and int8 activations, four neighbours at a time, by instruction set.

Operands are int32 lanes of four bytes: the codes of one weight row a lane, the same four activations in every lane.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr
from graphc.backends.tvm.templates import multiply_accumulate


@dataclass(frozen=True)
class ByteProduct:
    """step(sums, codes, x) = sums + the lanes' dot products. signed: codes of 8 bits are read as int8, else uint8."""

    name: str
    signed: bool
    step: Callable[[Expr, Expr, Expr], Expr]


def byte_product(isa: InstructionSet, bits: int) -> ByteProduct | None:
    """The instruction for codes of `bits`; None where the target has none worth using."""
    mac = multiply_accumulate.integer(isa)
    size = isa.bytes
    if mac.depth == 4:

        def dot(sums: Expr, codes: Expr, x: Expr) -> Expr:
            return mac.step(sums, T.reinterpret(f"{mac.left}x{size}", codes), T.reinterpret(f"int8x{size}", x))

        return ByteProduct(mac.name, mac.left == "int8", dot)
    if isa.target.arch == "arm64":
        return None
    suffix = {16: ".128", 32: "", 64: ".512"}[size]
    family = {16: "llvm.x86.ssse3.pmadd.ub.sw", 32: "llvm.x86.avx2.pmadd.ub.sw", 64: "llvm.x86.avx512.pmaddubs.w"}[size]
    pairs = {16: "llvm.x86.sse2.pmadd.wd", 32: "llvm.x86.avx2.pmadd.wd", 64: "llvm.x86.avx512.pmaddw.d.512"}[size]
    halves = f"int16x{size // 2}"

    def summed(left: Expr, right: Expr) -> Expr:
        return _intrinsic(pairs, f"int32x{size // 4}", left, right)

    def saturating(sums: Expr, codes: Expr, x: Expr) -> Expr:
        """Two products of at most 15 * 128 fit int16."""
        products = _intrinsic(
            family + suffix, halves, T.reinterpret(f"uint8x{size}", codes), T.reinterpret(f"int8x{size}", x)
        )
        return sums + summed(products, T.broadcast(T.int16(1), size // 2))

    def widening(sums: Expr, codes: Expr, x: Expr) -> Expr:
        """Even and odd bytes apart, as int16."""
        eight = T.broadcast(T.int16(8), size // 2)
        low = T.bitwise_and(codes, T.broadcast(T.int32(0x00FF00FF), size // 4))
        high = T.bitwise_and(T.shift_right(codes, T.broadcast(T.int32(8), size // 4)), T.int32(0x00FF00FF))
        short = T.reinterpret(halves, x)
        even, odd = T.shift_right(T.shift_left(short, eight), eight), T.shift_right(short, eight)
        return sums + summed(T.reinterpret(halves, low), even) + summed(T.reinterpret(halves, high), odd)

    if bits <= 4 and isa.target.has("ssse3"):
        return ByteProduct("pmaddubsw", False, saturating)
    return ByteProduct("pmaddwd", False, widening)


def _intrinsic(name: str, dtype: str, *args: Expr) -> Expr:
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *args, dtype=dtype)
