"""What a reduction does with its elements, and the two loop nests that every reduction, pool and norm is made of.

By columns: neighbours in memory belong to different results, so a vector of results accumulates side by side.
By rows: neighbours in memory belong to one result, which accumulates in a vector of partial results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from tvm.tirx.script import builder as T

from graphc.backends.tvm import scalars
from graphc.backends.tvm.evaluate import constant
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer
from graphc.backends.tvm.loops import nest, vector_loop
from graphc.tensor_type import Size


@dataclass(frozen=True)
class Reducer:
    """A neutral element (a function of the dtype) and an associative, commutative combination."""

    neutral: Callable[[str], float | int]
    combine: Callable[[Expr, Expr], Expr]


def lowest(dtype: str) -> float | int:
    """The least value of a type."""
    return -np.inf if dtype.startswith("float") else int(np.iinfo(dtype).min)


def highest(dtype: str) -> float | int:
    """The greatest value of a type."""
    return np.inf if dtype.startswith("float") else int(np.iinfo(dtype).max)


SUM = Reducer(lambda dtype: 0, lambda a, b: a + b)
PRODUCT = Reducer(lambda dtype: 1, lambda a, b: a * b)
MAXIMUM = Reducer(lowest, lambda a, b: scalars.maximum(b, a))
MINIMUM = Reducer(highest, lambda a, b: scalars.minimum(b, a))
ANY = Reducer(lambda dtype: 0, T.bitwise_or)
ALL = Reducer(lambda dtype: 1, T.bitwise_and)

# Vectors that accumulate one row: a sum takes four cycles, and two begin in each.
WAYS = 4

Window = Sequence[tuple[Expr, Expr]]  # (first, past the last) of each loop


def by_columns(
    k: KernelBuilder,
    outer: Sequence[Size],
    inner: Size,
    reducer: Reducer,
    dtype: str,
    window: Callable[[list[Expr]], Window],
    value: Callable[[list[Expr], Expr, list[Expr]], Expr],
    store: Callable[[list[Expr], Expr, Expr], None],
    cost: int = 4,
) -> None:
    """For each outer index and inner column: combine value(outer, column, w) for w in window(outer), then store."""
    lanes = k.isa.lanes(dtype) if dtype != "int64" else k.isa.lanes("int32")
    block = min(4 * lanes, k.ranges.maximum(inner))
    blocks: Size = (inner + (block - 1)) // block

    def body(position: list[Expr]) -> None:
        *index, number = position
        first = number * block
        valid: int | Expr = block
        if not isinstance(inner, int) or inner % block:
            valid = T.Bind(T.min(integer(block), k.size(inner) - first))
        sums = k.local(block, dtype)
        neutral = constant(reducer.neutral(dtype), dtype)
        vector_loop(k, valid, lanes, lambda i: T.buffer_store(sums, neutral, [i]))
        with ExitStack() as loops:
            at = [begin + loops.enter_context(k.loop(past - begin)) for begin, past in window(index)]

            def accumulate(i: Expr) -> None:
                T.buffer_store(sums, reducer.combine(sums[i], value(index, first + i, at)), [i])

            vector_loop(k, valid, lanes, accumulate)
        vector_loop(k, valid, lanes, lambda i: store(index, first + i, T.Bind(sums[i])))

    nest(k, [*outer, blocks], body, cost=cost * block)


def by_row(
    k: KernelBuilder,
    extents: Sequence[int | Expr],
    reducer: Reducer,
    dtype: str,
    value: Callable[[list[Expr]], Expr],
    lanes: int,
) -> Expr:
    """Combine value(index) over an index space whose last dimension is vectorized; returns the result.

    Several vectors accumulate in turn, so that none waits for the one before; at the end they are folded in halves.
    """
    *outer, inner = extents
    ways = WAYS if lanes > 1 else 1
    while ways > 1 and isinstance(inner, int) and ways * lanes > inner:
        ways //= 2
    sums = k.local(ways * lanes, dtype)
    neutral = constant(reducer.neutral(dtype), dtype)
    for way in range(ways):
        vector_loop(k, lanes, lanes, lambda i, way=way: T.buffer_store(sums, neutral, [i + way * lanes]))  # type: ignore[misc]

    def combine(at: Expr, item: Expr) -> None:
        T.buffer_store(sums, reducer.combine(sums[at], item), [at])

    with ExitStack() as loops:
        index = [loops.enter_context(k.loop(extent)) for extent in outer]
        whole = inner // lanes
        rounds = whole // ways
        with k.loop(rounds) as block:
            for way in range(ways):
                with k.vectorized(lanes) as lane:
                    combine(lane + way * lanes, value([*index, (block * ways + way) * lanes + lane]))
        if ways > 1 and not (isinstance(inner, int) and whole % ways == 0):
            with k.loop(whole - rounds * ways) as block, k.vectorized(lanes) as lane:
                combine(lane, value([*index, (rounds * ways + block) * lanes + lane]))
        if not isinstance(inner, int) or inner % lanes:
            with k.loop(inner - whole * lanes) as rest:
                combine(integer(0), value([*index, whole * lanes + rest]))
    half = ways * lanes
    while half > 1:
        half //= 2
        with k.vectorized(half) as lane:
            combine(lane, sums[lane + half])
    return T.Bind(sums[integer(0)])
