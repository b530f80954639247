"""int8 in groups with scales found from the values: one kernel for the integers, one for the scales."""

from __future__ import annotations

from collections.abc import Callable

import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import scalars
from graphc.backends.tvm.evaluate import At
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer, vector
from graphc.backends.tvm.loops import nest, vector_loop
from graphc.backends.tvm.operations import arguments, name_of, shape_of
from graphc.backends.tvm.templates.register_tile import store_result

NAME = "dynamic quantization"
OPERATORS = ("graphc.quantize_dynamic.default#0", "graphc.quantize_dynamic.default#1")


def matches(group: Group, isa: InstructionSet) -> str | None:
    return None if group.anchor is not None and name_of(group.anchor) in OPERATORS else "no dynamic quantization"


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.core
    args = arguments(anchor)
    size = args["group"]
    *outer, columns = shape_of(args["x"])

    def one(index: list[Expr]) -> None:
        first = index[-1] * size
        scale = group_scale(k, size, lambda j: At(k, group.nodes)(args["x"], [*index[:-1], first + j]))
        if name_of(anchor) == OPERATORS[1]:
            store_result(group, k, index, scale)
            return

        def element(j: Expr) -> None:
            value = At(k, group.nodes)(args["x"], [*index[:-1], first + j])
            q = T.cast(scalars.to_integer(rounded(value, scale), "int32"), "int8")
            store_result(group, k, [*index[:-1], first + j], q)

        vector_loop(k, size, k.isa.lanes("float32"), element)

    nest(k, [*outer, columns // size], one, cost=size)


def group_scale(k: KernelBuilder, size: int, read: Callable[[Expr], Expr]) -> Expr:
    """max|x| / 127 over `size` values, 1 where that is nought."""
    lanes = _lanes(k, size)
    largest = k.local(lanes, "float32")
    with k.vectorized(lanes) as lane:
        T.buffer_store(largest, T.float32(0), [lane])
    with k.loop(size // lanes) as block, k.vectorized(lanes) as lane:
        T.buffer_store(largest, T.max(largest[lane], scalars.absolute(read(block * lanes + lane))), [lane])
    scale = T.Bind(_reduced("fmax", largest, lanes) / T.float32(127))
    return T.Bind(T.Select(scale > T.float32(0), scale, T.float32(1)))


def rounded(value: Expr, scale: Expr) -> Expr:
    """The nearest whole number of scales, as float."""
    return scalars.round_half_even(value / scale)


def quantize_group(
    k: KernelBuilder, size: int, steps: Callable[[Expr], Expr], target: tirx.Buffer, start: Expr
) -> Expr:
    """Store `size` whole numbers as int8 from `start` on; their sum."""
    lanes = _lanes(k, size)
    sums = k.local(lanes, "int32")
    with k.vectorized(lanes) as lane:
        T.buffer_store(sums, T.int32(0), [lane])
    with k.loop(size // lanes) as block, k.vectorized(lanes) as lane:
        q = T.Bind(scalars.to_integer(steps(block * lanes + lane), "int32"))
        T.buffer_store(target, T.cast(q, "int8"), [start + block * lanes + lane])
        T.buffer_store(sums, sums[lane] + q, [lane])
    return T.Bind(_reduced("add", sums, lanes))


def _lanes(k: KernelBuilder, size: int) -> int:
    return max(
        lanes for lanes in range(1, k.isa.lanes("float32") + 1) if size % lanes == 0 and lanes & (lanes - 1) == 0
    )


def _reduced(operation: str, buffer: tirx.Buffer, lanes: int) -> Expr:
    """The lanes of a vector in one: halves against each other, as LLVM's own operation."""
    if lanes == 1:
        return buffer[integer(0)]
    name = T.llvm_lookup_intrinsic_id(f"llvm.vector.reduce.{operation}")
    return T.call_llvm_pure_intrin(name, vector(buffer, integer(0), lanes), dtype=str(buffer.ty.dtype))
