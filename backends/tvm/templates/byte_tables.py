"""Look-up in tables of bytes that lie in vector registers, by instruction set.

A table of up to 256 bytes is held as `chunk`-byte parts, the reach of one permutation. Parts are combined in a tree:
bit b of the index chooses between neighbours of 2^b bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, vector


@dataclass(frozen=True)
class ByteTables:
    """`lanes` look-ups at once. permute(parts, index): one permutation's result, where `parts` are `lanes`-byte
    vectors that together hold `chunk` entries; index bits above log2(chunk) do not matter to it."""

    name: str
    lanes: int
    chunk: int
    permute: Callable[[list[Expr], Expr], Expr]
    replicated: bool  # each 16 bytes of a part's register hold the same 16 entries

    @property
    def reach(self) -> int:
        """Entries that cost no more than the indices' way through memory: what permutations of AVX512-VBMI hold, else
        what one does."""
        return {"vpermb": 64, "vpermi2b": 256, "tbl": 64}.get(self.name, self.chunk)

    @staticmethod
    def of(isa: InstructionSet, entries: int) -> ByteTables:
        """The cheapest way for tables of `entries` bytes."""
        if isa.target.has("avx512vbmi") and isa.bytes == 64 and entries >= 64:
            if entries == 64:
                return ByteTables("vpermb", 64, 64, _permb, False)
            return ByteTables("vpermi2b", 64, 128, _permi2b, False)
        if isa.target.arch == "arm64":
            return ByteTables("tbl", 16, 16, _tbl, False)
        return ByteTables("pshufb", isa.bytes, 16, _pshufb(isa.bytes), True)

    def load(self, buffer: tirx.Buffer, start: Expr, entries: int) -> list[list[Expr]]:
        """The table of `entries` int8 at `start`, as parts of one permutation each. Entries are lifted by 128, so that
        they add up as unsigned bytes."""
        width = 16 if self.replicated else self.lanes
        registers = []
        for place in range(0, entries, width):
            part = vector(buffer, start + place, width)
            if self.replicated and self.lanes > 16:
                words = T.reinterpret("int64x2", part)
                part = T.reinterpret(f"int8x{self.lanes}", _repeated(words, self.lanes // 16))
            registers.append(T.Bind(T.bitwise_xor(part, T.broadcast(T.int8(-128), self.lanes))))
        together = max(1, self.chunk // width)
        return [registers[i : i + together] for i in range(0, len(registers), together)]

    def look(self, parts: list[list[Expr]], index: Expr) -> Expr:
        """The entries (as int8 lanes, lifted by 128) at int8 lanes of indices."""
        index = T.Bind(index)
        if self.replicated and len(parts) > 1:  # pshufb gives nought where bit 7 is set
            low = T.Bind(T.bitwise_and(index, T.broadcast(T.int8(15), self.lanes)))
        elif self.name == "tbl" and len(parts) > 1:
            return _tbl_tree(parts, index)
        else:
            low = index
        level = [T.Bind(self.permute(part, low)) for part in parts]
        bit = self.chunk
        while len(level) > 1:
            if bit == 128:
                upper = index < T.broadcast(T.int8(0), self.lanes)
            else:
                mask = T.bitwise_and(index, T.broadcast(T.int8(bit), self.lanes))
                upper = tirx.NE(mask, T.broadcast(T.int8(0), self.lanes))
            level = [T.Bind(T.Select(upper, level[i + 1], level[i])) for i in range(0, len(level), 2)]
            bit *= 2
        return level[0]


def _intrinsic(name: str, lanes: int, *args: Expr) -> Expr:
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id(name), *args, dtype=f"int8x{lanes}")


def _permb(parts: list[Expr], index: Expr) -> Expr:
    return _intrinsic("llvm.x86.avx512.permvar.qi.512", 64, parts[0], index)


def _permi2b(parts: list[Expr], index: Expr) -> Expr:
    return _intrinsic("llvm.x86.avx512.vpermi2var.qi.512", 64, parts[0], index, parts[1])


def _pshufb(lanes: int) -> Callable[[list[Expr], Expr], Expr]:
    name = {16: "llvm.x86.ssse3.pshuf.b.128", 32: "llvm.x86.avx2.pshuf.b", 64: "llvm.x86.avx512.pshuf.b.512"}[lanes]
    return lambda parts, index: _intrinsic(name, lanes, parts[0], index)


def _tbl(parts: list[Expr], index: Expr) -> Expr:
    return _intrinsic("llvm.aarch64.neon.tbl1.v16i8", 16, parts[0], index)


def _tbl_tree(parts: list[list[Expr]], index: Expr) -> Expr:
    """64 bytes a `tbl`; those beyond give nought, and `tbx` keeps what was found before."""
    registers = [part[0] for part in parts]
    count = min(4, len(registers))
    found = _intrinsic(f"llvm.aarch64.neon.tbl{count}.v16i8", 16, *registers[:count], index)
    for first in range(4, len(registers), 4):
        rest = T.Bind(index - T.broadcast(T.int8(16 * first - 256 if first >= 8 else 16 * first), 16))
        found = _intrinsic("llvm.aarch64.neon.tbx4.v16i8", 16, T.Bind(found), *registers[first : first + 4], rest)
    return T.Bind(found)


def _repeated(words: Expr, times: int) -> Expr:
    """Two 64-bit words again and again."""
    words = T.Bind(words)
    return tirx.Shuffle([words] * times, [T.int32(i) for i in range(2 * times)])
