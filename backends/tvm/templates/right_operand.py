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

from graphc.backends.tvm.kernel import Expr, KernelBuilder, Packed, TensorView, vector
from graphc.backends.tvm.operations import dtype_of
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

    def _packed_order(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The value as [matrix, n, tap, j]."""
        index = self.element(*np.ogrid[tuple(slice(int(size)) for size in self._sizes)])
        result: np.ndarray[Any, Any] = values[tuple(np.broadcast_arrays(*index))]
        return result

    def _sums(self, k: KernelBuilder) -> np.ndarray[Any, Any]:
        """int64 [matrix * columns]: the sum of each column of integer weights."""
        known = k.around.known(self.node)
        assert known is not None, f"{self.node}: integer products take weights"
        sums: np.ndarray[Any, Any] = self._packed_order(known).astype(np.int64).sum((2, 3)).ravel()
        return sums

    def packed(self, k: KernelBuilder, mac: Packing) -> tirx.Buffer:
        """The packed operand as a flat buffer of the kernel."""
        elements = packed_elements(*self._sizes, mac)
        size = k.ranges.maximum(elements) * np.dtype(mac.right).itemsize
        stored = k.around.array(self.node)
        if stored is not None and not (dtype_of(self.node) == mac.right and k.packs_at_load(self.node, size)):
            return k.constant(pack(self._packed_order(stored), mac), f"{self.node.name} packed for {mac.name}")

        def fill(builder: KernelBuilder, source: TensorView, target: tirx.Buffer) -> None:
            emit_pack(builder, mac, target, *self._sizes, lambda *at: source.load(self.element(*at)))

        if k.at_load(self.node):
            key = ("packed", mac.name, mac.width, mac.unit, self.kind, *self._sizes)
            return k.packed(Packed(self.node, key, size, fill, mac.right))
        scratch = k.workspace(elements, mac.right)
        fill(k, k.tensor(self.node), scratch)
        return scratch

    def correction(self, k: KernelBuilder, bias: fx.Node | None, shift: int) -> Callable[[Expr], Expr] | None:
        """bias[n] + shift * (sum of the weights of n) for n = matrix * columns + column, as a function of n."""
        if shift == 0:
            return None if bias is None else lambda n: k.tensor(bias).load([n])
        offset = None if bias is None else k.around.known(bias)
        sums = shift * self._sums(k) + (0 if offset is None else offset)
        table = k.constant(sums.astype(np.int32), f"{self.node.name}: bias less the zero point's share")
        if bias is None or offset is not None:
            return lambda n: table[n]
        return lambda n: table[n] + k.tensor(bias).load([n])

    def initial(
        self, k: KernelBuilder, bias: fx.Node | None, shift: int, width: int
    ) -> Callable[[Expr, int], Expr] | None:
        """The same, where it is known at compile time, as a function of n and how many from there on, which may reach
        beyond the last column of a panel of `width`."""
        offset = None if bias is None else k.around.known(bias)
        if offset is None and (bias is not None or shift == 0):
            return None
        sums = np.zeros(int(self.matrices * self.columns), np.int32) if offset is None else offset
        if shift:
            sums = (sums + shift * self._sums(k)).astype(np.int32)
        table = k.constant(np.pad(sums, (0, -int(self.columns) % width)), f"{self.node.name}: first sums")
        return lambda n, count: vector(table, n, count)
