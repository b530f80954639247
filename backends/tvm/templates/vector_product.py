"""One row times a matrix that is no stored weight, read where it lies: what attention does for one new token.

    out[batch, 0, n] = epilogue(sum over j of left[batch, 0, j] * right[batch, j, n])

A matrix that is used once is not worth packing. Where its columns lie in line, sums for several vectors of columns grow
together; where its rows do, each sum grows in the lanes of a vector.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.evaluate import broadcast
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer, store_vector, vector
from graphc.backends.tvm.loops import PARALLEL_WORK, unflatten, vector_loop
from graphc.backends.tvm.operations import arguments, dtype_of, is_stored, name_of, shape_of
from graphc.backends.tvm.sizes import product
from graphc.backends.tvm.templates.register_tile import store_result

NAME = "vector product"
OPERATORS = ("aten.matmul.default", "aten.bmm.default")


def matches(group: Group, isa: InstructionSet) -> str | None:
    anchor = group.anchor
    if anchor is None or name_of(anchor) not in OPERATORS:
        return "no product of batches of matrices"
    left, right = list(arguments(anchor).values())[:2]
    if left in group.nodes or right in group.nodes:
        return "an operand is computed inside the group"
    if dtype_of(left) != "float32" or dtype_of(right) != "float32":
        return f"product of {dtype_of(left)} and {dtype_of(right)}"
    shape = shape_of(right)
    if len(shape_of(left)) < 2 or len(shape) < 2 or shape_of(left)[-2] != 1 or is_stored(right):
        return "more than one row, or a stored weight"
    return None


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.core
    left_node, right_node = list(arguments(anchor).values())[:2]
    left, right = k.tensor(left_node), k.tensor(right_node)
    outer = shape_of(anchor)[:-2]
    depth, columns = shape_of(right_node)[-2:]
    lanes = k.isa.lanes("float32")
    in_line = k.strides(right_node)[-2] == 1 != k.strides(right_node)[-1]
    # A unit of work is one sum, or a few vectors of sums.
    unit = 1 if in_line else lanes * 4
    number = (columns + (unit - 1)) // unit
    work = k.ranges.maximum(product([*outer, depth, columns]))

    with k.loop(k.size(product(outer)), parallel=work >= PARALLEL_WORK) as flat:
        index = unflatten(flat, [k.size(size) for size in outer])
        whole = [*index, integer(0), integer(0)]
        x = broadcast(whole, left_node)[:-1]
        matrix = broadcast(whole, right_node)[:-2]

        def store(n: Expr, value: Expr) -> None:
            store_result(group, k, [*index, integer(0), n], value)

        if in_line:
            with k.loop(k.size(columns)) as n:
                store(n, _dot(k, lanes, k.size(depth), lambda j: left.load([*x, j]) * right.load([*matrix, j, n])))
            return
        with k.loop(k.size(number)) as block:
            sums = k.local(unit, "float32")
            whole_unit = isinstance(columns, int) and columns % unit == 0
            valid = unit if whole_unit else T.Bind(T.min(integer(unit), k.size(columns) - block * unit))
            vector_loop(k, unit, lanes, lambda i: T.buffer_store(sums, T.float32(0), [i]))
            with k.loop(k.size(depth)) as j:
                value = T.Bind(left.load([*x, j]))

                def add(i: Expr) -> None:
                    product_ = value * right.load([*matrix, j, block * unit + i])
                    T.buffer_store(sums, sums[i] + product_, [i])

                vector_loop(k, valid, lanes, add)
            vector_loop(k, valid, lanes, lambda i: store(block * unit + i, sums[i]))


def _dot(k: KernelBuilder, lanes: int, depth: Expr, term: Callable[[Expr], Expr]) -> Expr:
    """The sum of term(j) for j below `depth`."""
    sums, total = k.local(lanes, "float32"), k.local(1, "float32")
    store_vector(sums, integer(0), lanes, T.broadcast(T.float32(0), lanes))
    blocks = T.Bind(depth // lanes)
    with k.loop(blocks) as block, k.vectorized(lanes) as lane:
        T.buffer_store(sums, sums[lane] + term(block * lanes + lane), [lane])
    T.buffer_store(total, _lanes_sum(vector(sums, integer(0), lanes), lanes), [integer(0)])
    with k.loop(depth - blocks * lanes) as rest:
        T.buffer_store(total, total[integer(0)] + term(blocks * lanes + rest), [integer(0)])
    return T.Bind(total[integer(0)])


def _lanes_sum(value: Expr, lanes: int) -> Expr:
    """The sum of a vector's lanes, halves added until one is left."""
    while lanes > 1:
        value, lanes = T.Bind(value), lanes // 2
        low, high = (tirx.Shuffle([value], [T.int32(first + i) for i in range(lanes)]) for first in (0, lanes))
        value = low + high
    return value
