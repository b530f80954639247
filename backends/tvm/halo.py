"""Fill what lies around an image, so that the windows that slide over it need no copy with padding."""

from __future__ import annotations

from torch import fx

from graphc.backends.tvm.evaluate import constant
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer
from graphc.backends.tvm.loops import vector_loop
from graphc.backends.tvm.operations import dtype_of, shape_of


def fill_halo(k: KernelBuilder, node: fx.Node) -> None:
    """Write the halo of a value, if it has one. Images are channels-last."""
    halo = k.halo(node)
    if halo is None:
        return
    target = k.tensor(node)
    batch, channels, height, width = shape_of(node)
    row, column = target.strides[2], int(channels)
    nought = constant(halo.fill, dtype_of(node))

    def fill(first: Expr, count: int) -> None:
        vector_loop(k, count, k.isa.lanes(dtype_of(node)), lambda i: target.store_at(first + i, nought))

    above = halo.before[0] * (halo.before[1] + int(width) + halo.after[1]) + halo.before[1]
    beneath = halo.after[0] * (halo.before[1] + int(width) + halo.after[1]) + halo.after[1]
    with k.loop(k.size(batch)) as n:
        image = n * target.strides[0]
        fill(image - above * column, above * column)
        with k.loop(int(height) - 1) as y:  # the end of a row and the beginning of the next are neighbours
            fill(image + y * row + int(width) * column, (halo.after[1] + halo.before[1]) * column)
        fill(image + integer(int(height) - 1) * row + int(width) * column, beneath * column)
