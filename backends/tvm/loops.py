"""Loop nests over index spaces: parallel outside, vectorized inside."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm.tirx.script import builder as T

from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer
from graphc.tensor_type import Size

# Below this many element operations, waking threads costs more than it saves.
PARALLEL_WORK = 1 << 15
# Iterations to hand out: enough that uneven threads even out.
PARALLEL_GRAIN = 16
# Elements of a one-dimensional block.
BLOCK = 4096

Body = Callable[[list[Expr]], None]


def vector_loop(k: KernelBuilder, extent: int | Expr, lanes: int, body: Callable[[Expr], None]) -> None:
    """`body(i)` for i in [0, extent): `lanes` at a time, then the rest one by one."""
    if isinstance(extent, int):
        blocks, rest = divmod(extent, lanes)
        if blocks and lanes > 1:
            with k.loop(blocks) as block, k.vectorized(lanes) as lane:
                body(block * lanes + lane)
        if lanes == 1:
            blocks, rest = 0, extent
        if rest:
            with k.loop(rest) as position:
                body(position + blocks * lanes)
        return
    blocks = extent // lanes if lanes > 1 else integer(0)
    if lanes > 1:
        with k.loop(blocks) as block, k.vectorized(lanes) as lane:
            body(block * lanes + lane)
    with k.loop(extent - blocks * lanes) as position:
        body(position + blocks * lanes)


def unflatten(flat: Expr, extents: Sequence[Expr]) -> list[Expr]:
    """The row-major multi-index of a flat one, which is not negative."""
    index: list[Expr] = []
    for extent in reversed(extents[1:]):
        index.append(T.truncmod(flat, extent))
        flat = T.truncdiv(flat, extent)
    return [flat, *reversed(index)] if extents else []


def nest(k: KernelBuilder, extents: Sequence[Size], body: Body, lanes: int = 1, cost: int = 1) -> None:
    """`body(index)` over a row-major index space: parallel over the leading dimensions, vectors along the last.

    `cost`: work of one element, in units of a simple operation. `body` may be called several times, for vectors and
    for their rest.
    """
    if not extents:
        body([])
        return
    work = cost
    for extent in extents:
        work *= k.ranges.maximum(extent)
    leading, grain = 0, 1
    while leading < len(extents) - 1 and (grain < PARALLEL_GRAIN or k.ranges.maximum(extents[leading]) == 1):
        grain *= k.ranges.maximum(extents[leading])
        leading += 1
    parallel = work >= PARALLEL_WORK
    if parallel and grain == 1:
        _blocked(k, extents[-1], lambda i: body([integer(0)] * leading + [i]), lanes)
        return
    if not parallel:
        leading = 0

    def inner(index: list[Expr], rest: Sequence[Size]) -> None:
        if len(rest) > 1:
            with k.loop(_extent(k, rest[0])) as position:
                inner([*index, position], rest[1:])
        else:
            vector_loop(k, _extent(k, rest[0]), lanes, lambda i: body([*index, i]))

    sizes = [k.size(extent) for extent in extents[:leading]]
    fused = integer(1)
    for size in sizes:
        fused = fused * size
    if leading:
        with k.loop(fused, parallel=True) as flat:
            inner(unflatten(flat, sizes), extents[leading:])
    else:
        inner([], extents)


def _extent(k: KernelBuilder, size: Size) -> int | Expr:
    return size if isinstance(size, int) else k.size(size)


def _blocked(k: KernelBuilder, extent: Size, body: Callable[[Expr], None], lanes: int) -> None:
    """One long dimension, in blocks for the threads."""
    if isinstance(extent, int):
        block = next((size for size in range(BLOCK, BLOCK // 4, -lanes) if extent % size == 0), BLOCK)
        if extent % block == 0:
            with k.loop(extent // block, parallel=True) as number:
                vector_loop(k, block, lanes, lambda i: body(number * block + i))
            return
    size = k.size(extent)
    with k.loop((size + (BLOCK - 1)) // BLOCK, parallel=True) as number:
        vector_loop(k, T.min(integer(BLOCK), size - number * BLOCK), lanes, lambda i: body(number * BLOCK + i))
