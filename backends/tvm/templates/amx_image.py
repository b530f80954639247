"""A padded channels-last copy of an image, split into phases by a stride, for tiles to read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.evaluate import At, constant
from graphc.backends.tvm.geometry import Geometry
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer
from graphc.backends.tvm.loops import PARALLEL_WORK, unflatten, vector_loop
from graphc.backends.tvm.operations import rank_of
from graphc.backends.tvm.sizes import product


@dataclass(frozen=True)
class Copy:
    """[batch, phases down, phases across, lines, columns, channels]: phase (p, q) holds every stride-th pixel of the
    padded image from (p, q) on."""

    phases: tuple[int, int]
    lines: int
    columns: int

    @staticmethod
    def in_phases(g: Geometry) -> Copy:
        """As many phases as the stride makes. Without a stride across, the left padding of one line is the right
        padding of the line before it."""
        reach = [(taps - 1) * step // jump for taps, step, jump in zip(g.kernel, g.dilation, g.stride, strict=True)]
        lines, columns = int(g.result[0]) + reach[0], int(g.result[1]) + reach[1]
        if g.stride[1] == 1:
            margin = g.before[1]
            columns = max(columns - margin, margin + min(int(g.image[1]), columns - margin))
            lines += margin > 0
        return Copy(g.stride, lines, columns)

    @property
    def pixels(self) -> tuple[int, ...]:
        """Sizes, less batch and channels."""
        return (*self.phases, self.lines, self.columns)

    def emit(self, group: Group, k: KernelBuilder, g: Geometry, dtype: str, beyond: int) -> tirx.Buffer:
        """Write the copy; `beyond` bytes behind it may be read as well."""
        channels, lanes = g.channels, k.isa.lanes(dtype)
        buffer = k.workspace(product([g.batch, *self.pixels, channels]) + beyond // np.dtype(dtype).itemsize, dtype)
        nought = constant(g.zero, dtype)
        strides = k.strides(g.x) if g.x not in group.nodes else None
        dense = strides is not None and strides[1] == 1 and strides[-1] == channels and self.phases[1] == 1
        read = {
            (y * g.dilation[0] % self.phases[0], x * g.dilation[1] % self.phases[1]) for y, x in np.ndindex(*g.kernel)
        }

        def fill(start: Expr, pixels: int) -> None:
            vector_loop(k, pixels * channels, lanes, lambda i: T.buffer_store(buffer, nought, [start + i]))

        def index(n: Expr, c: Expr, y: Expr, x: Expr) -> list[Expr]:
            return [n, c, y, x] if rank_of(g.x) == 4 else [n, c, x]

        def pixel(n: Expr, y: Expr, x: Expr, target: Expr) -> None:
            def element(c: Expr) -> None:
                T.buffer_store(buffer, At(k, group.nodes)(g.x, index(n, c, y, x)), [target + c])

            vector_loop(k, channels, lanes if strides is not None and strides[1] == 1 else 1, element)

        def line(n: Expr, y: Expr, start: Expr, across: int) -> None:
            """One line: its columns from `first` up to `last` hold pixels of the image."""
            jump, margin = self.phases[1], g.before[1] - across
            first = max(0, -(-margin // jump))
            last = min(self.columns, -(-(int(g.image[1]) + margin) // jump))
            fill(start, first)
            fill(start + last * channels, self.columns - last)
            target, x = start + first * channels, first * jump - margin
            if dense:
                view = k.tensor(g.x)
                source = view.offset(index(n, integer(0), y, integer(x)))

                def move(i: Expr) -> None:
                    T.buffer_store(buffer, view.load_at(source + i), [target + i])

                vector_loop(k, (last - first) * channels, lanes, move)
            else:
                with k.loop(last - first) as column:
                    pixel(n, y, x + column * jump, target + column * channels)

        extents = [k.size(g.batch), integer(self.lines)]
        parallel = k.ranges.maximum(product([g.batch, *self.pixels, channels])) >= PARALLEL_WORK
        with k.loop(extents[0] * self.lines, parallel) as flat:
            n, number = unflatten(flat, extents)
            for down, across in sorted(read):
                position = (n * self.phases[0] + down) * self.phases[1] + across
                start = T.Bind((position * self.lines + number) * (self.columns * channels))
                y = T.Bind(number * self.phases[0] + (down - g.before[0]))
                with T.If(T.And(y >= 0, y < int(g.image[0]))):
                    with T.Then():
                        line(n, y, start, across)
                    with T.Else():
                        fill(start, self.columns)
        return buffer
