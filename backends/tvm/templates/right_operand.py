"""The right operand of a product, packed: at compile time, at load, or by the kernel itself.

`element(matrix, n, tap, j)` says which element of the weight (or activation) each packed one is. It is written with
Python's operators alone, so that the same function indexes a numpy array here and memory in a kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm.tirx as tirx
from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.kernel import Expr, KernelBuilder, Packed, TensorView, integer, vector
from graphc.backends.tvm.templates.register_tile import Packing, emit_pack, pack, packed_elements
from graphc.tensor_type import Size

Element = Callable[[Any, Any, Any, Any], list[Any]]


@dataclass(frozen=True)
class RightOperand:
    """`matrices` matrices of `columns` x `taps` x `run` elements of a node's value."""

    node: fx.Node
    matrices: Size
    columns: Size
    taps: int
    run: Size
    element: Element
    kind: str  # names `element`: equal kinds of equal weights share a packed copy

    @property
    def _sizes(self) -> tuple[Size, Size, int, Size]:
        return self.matrices, self.columns, self.taps, self.run

    def _array(self, k: KernelBuilder) -> np.ndarray[Any, Any] | None:
        """[matrix, n, tap, j] where the value is known at compile time."""
        values = k.array(self.node)
        if values is None:
            return None
        index = self.element(*np.ogrid[tuple(slice(int(size)) for size in self._sizes)])
        result: np.ndarray[Any, Any] = values[tuple(np.broadcast_arrays(*index))]
        return result

    def packed(self, k: KernelBuilder, mac: Packing) -> tirx.Buffer:
        """The packed operand as a flat buffer of the kernel."""
        known = self._array(k)
        if known is not None:
            return k.constant(pack(known, mac), f"{self.node.name} packed for {mac.name}")
        elements = packed_elements(*self._sizes, mac)

        def fill(builder: KernelBuilder, source: TensorView, target: tirx.Buffer) -> None:
            emit_pack(builder, mac, target, *self._sizes, lambda *at: source.load(self.element(*at)))

        if k.at_load(self.node):
            key = ("packed", mac.name, mac.width, mac.unit, self.kind, *self._sizes)
            size = k.ranges.maximum(elements) * np.dtype(mac.right).itemsize
            return k.packed(Packed(self.node, key, size, fill, mac.right))
        scratch = k.workspace(elements, mac.right)
        fill(k, k.tensor(self.node), scratch)
        return scratch

    def correction(self, k: KernelBuilder, bias: fx.Node | None, shift: int) -> Callable[[Expr], Expr] | None:
        """bias[n] + shift * (sum of the weights of n) for n = matrix * columns + column, as a function of n."""
        if shift == 0:
            return None if bias is None else lambda n: k.tensor(bias).load([n])
        known, offset = self._array(k), None if bias is None else k.array(bias)
        if known is not None and (bias is None or offset is not None):
            sums = shift * known.astype(np.int64).sum((2, 3)).ravel() + (0 if offset is None else offset)
            table = k.constant(sums.astype(np.int32), f"{self.node.name}: bias less the zero point's share")
            return lambda n: table[n]
        size = 4 * int(self.matrices * self.columns)
        sums = k.packed(Packed(self.node, ("sums", self.kind, *self._sizes), size, self._sum, "int32"))

        def corrected(n: Expr) -> Expr:
            share = sums[n] * T.int32(shift)
            return share if bias is None else share + k.tensor(bias).load([n])

        return corrected

    def initial(
        self, k: KernelBuilder, bias: fx.Node | None, shift: int, width: int
    ) -> Callable[[Expr, int], Expr] | None:
        """The same, where it is known at compile time, as a function of n and how many from there on, which may reach
        beyond the last column of a panel of `width`."""
        known, offset = self._array(k), None if bias is None else k.array(bias)
        if known is None or (offset is None and (bias is not None or shift == 0)):
            return None
        sums = np.zeros(int(self.matrices * self.columns), np.int32) if offset is None else offset
        if shift:
            sums = (sums + shift * known.astype(np.int64).sum((2, 3)).ravel()).astype(np.int32)
        table = k.constant(np.pad(sums, (0, -int(self.columns) % width)), f"{self.node.name}: first sums")
        return lambda n, count: vector(table, n, count)

    def _sum(self, k: KernelBuilder, source: TensorView, target: tirx.Buffer) -> None:
        """Sum the weights of each column."""
        columns = integer(int(self.columns))
        total = k.local(1, "int32")
        with k.loop(k.size(self.matrices) * columns) as n:
            T.buffer_store(total, T.int32(0), [integer(0)])
            with k.loop(self.taps) as tap, k.loop(k.size(self.run)) as j:
                value = source.load(self.element(n // columns, n % columns, tap, j))
                T.buffer_store(total, total[integer(0)] + T.cast(value, "int32"), [integer(0)])
            T.buffer_store(target, total[integer(0)], [n])
