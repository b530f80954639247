"""The codes of weights in registers: how they are packed for a kernel, and how it takes them out.

A code of `bits` is split into fields that divide a byte (weight_formats.FIELDS). A register of a field holds, for each
of its rows (one 32-bit lane a row), 8 / field steps of four neighbouring columns: a shift and a mask give the bytes
that a dot product takes. Registers lie as [panel][unit of columns][vector of rows][register]; a panel is `vectors`
times `lanes` rows, and columns are padded to whole units, rows to whole panels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.kernel import Expr, KernelBuilder, vector
from graphc.backends.tvm.loops import nest
from graphc.backends.tvm.weight_formats import FIELDS, unit

Array = np.ndarray[Any, Any]
Code = Callable[[Expr, Expr, Expr], Expr]


@dataclass(frozen=True)
class Codes:
    """Codes of `bits` for registers of `lanes` rows, `vectors` of them side by side."""

    bits: int
    lanes: int
    vectors: int

    @property
    def width(self) -> int:
        """Rows of a panel."""
        return self.lanes * self.vectors

    @property
    def unit(self) -> int:
        """Columns of a unit."""
        return unit(self.bits)

    @property
    def registers(self) -> int:
        """Registers of a unit, for one vector of rows."""
        return self.unit * self.bits // 32

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit, all vectors of rows."""
        return self.vectors * self.registers * self.lanes * 4

    def bytes_of(self, rows: int, columns: int) -> int:
        """Bytes of a packed matrix."""
        return -(-rows // self.width) * -(-columns // self.unit) * self.unit_bytes

    def pack(self, codes: Array) -> Array:
        """uint8 [rows, columns] -> uint8 [panels, units, vectors, registers, lanes, 4]."""
        rows, columns = codes.shape
        panels, units = -(-rows // self.width), -(-columns // self.unit)
        padded = np.zeros((panels * self.width, units * self.unit), np.uint8)
        padded[:rows, :columns] = codes
        steps = padded.reshape(panels, self.vectors, self.lanes, units, self.unit // 4, 4)
        fields, low = [], 0
        for field in FIELDS[self.bits]:
            part = (steps >> low) & (2**field - 1)
            part = part.reshape(*steps.shape[:4], -1, 8 // field, 4)
            shifts = np.arange(0, 8, field, dtype=np.uint8)[:, None]
            fields.append(np.bitwise_or.reduce(part << shifts, axis=-2))
            low += field
        registers = np.concatenate(fields, axis=-2)  # [panel, vector, lane, unit, register, 4]
        return np.ascontiguousarray(registers.transpose(0, 3, 1, 4, 2, 5))

    def emit_pack(self, k: KernelBuilder, target: tirx.Buffer, rows: int, columns: int, code: Code) -> None:
        """The same at load: `code(row, column, inside)` is uint8; it counts where `inside` holds."""
        panels, units = -(-rows // self.width), -(-columns // self.unit)
        size = self.lanes * 4  # bytes of a register

        def put(index: list[Expr]) -> None:
            panel, number, v, lane, byte = index
            row = T.Bind(panel * self.width + v * self.lanes + lane)
            start = T.Bind(((panel * units + number) * self.vectors + v) * (self.registers * size) + lane * 4 + byte)
            low, register = 0, 0
            for field in FIELDS[self.bits]:
                for first in range(0, self.unit, 32 // field):
                    whole: Expr = T.uint8(0)
                    for place in range(8 // field):
                        column = T.Bind(number * self.unit + first + 4 * place + byte)
                        inside = T.And(row < rows, column < columns)
                        part = T.shift_right(code(row, column, inside), T.uint8(low))
                        part = T.shift_left(T.bitwise_and(part, T.uint8(2**field - 1)), T.uint8(field * place))
                        whole = T.bitwise_or(whole, T.Select(inside, part, T.uint8(0)))
                    T.buffer_store(target, whole, [start + register * size])
                    register += 1
                low += field

        nest(k, [panels, units, self.vectors, self.lanes, 4], put)

    def load(self, buffer: tirx.Buffer, start: Expr, v: int) -> list[Expr]:
        """The registers of a unit that begins at byte `start`, for one vector of rows, as int32 lanes."""
        size = self.lanes * 4
        at = [start + (v * self.registers + register) * size for register in range(self.registers)]
        return [T.Bind(T.reinterpret(f"int32x{self.lanes}", vector(buffer, place, size))) for place in at]

    def bytes(self, registers: list[Expr], step: int) -> Expr:
        """The codes of columns 4 * step to 4 * step + 3, a byte each in every lane, as int32 lanes."""
        return self._take(registers, step, 0, 0x01010101)

    def column(self, registers: list[Expr], column: int, masked: bool = True) -> Expr:
        """The codes of one column of the unit, one in each int32 lane; not masked: its lowest bits."""
        return self._take(registers, column // 4, 8 * (column % 4), 1 if masked else 0)

    def _take(self, registers: list[Expr], step: int, offset: int, ones: int) -> Expr:
        """Codes of a step, moved down by `offset`; the mask of a field is its largest number times `ones`."""
        result, first, low = None, 0, 0
        for field in FIELDS[self.bits]:
            per_register = 8 // field
            register = registers[first + step // per_register]
            shift = offset + field * (step % per_register) - low
            part = register
            if shift:
                move = T.shift_right if shift > 0 else T.shift_left
                part = move(register, self._constant(abs(shift)))
            mask = (2**field - 1) * (ones or 1) << low
            if (ones or len(FIELDS[self.bits]) > 1) and mask != 0xFFFFFFFF:
                part = T.bitwise_and(part, self._constant(mask))
            result = part if result is None else T.bitwise_or(result, part)
            first += self.unit // 4 // per_register
            low += field
        return T.Bind(result)

    def _constant(self, value: int) -> Expr:
        signed = value - (1 << 32) if value >= 1 << 31 else value
        return T.broadcast(T.int32(signed), self.lanes)
