"""Element-wise operators and views: one loop over the result, in the order in which it lies in memory.

Where the group only broadcasts, dimensions that are neighbours in memory for every operand become one loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import fx
from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from graphc.backends.tvm.evaluate import At
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.index_functions.moves import GUARDED
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer
from graphc.backends.tvm.layout import memory_order
from graphc.backends.tvm.loops import nest
from graphc.backends.tvm.operations import arguments, dtype_of, name_of, operands, rank_of, shape_of
from graphc.backends.tvm.sizes import product, simplify
from graphc.tensor_type import Size

NAME = "elementwise"
OPERATORS: tuple[str, ...] = ()

# Scalar operations that an element of a transcendental function costs, roughly.
COST = 4


def matches(group: Group, isa: InstructionSet) -> str | None:
    return None if group.anchor is None else f"{name_of(group.anchor)} is no element-wise operator"


def emit(group: Group, k: KernelBuilder) -> None:
    loop_over(group, k, group.output)


def loop_over(group: Group, k: KernelBuilder, result: fx.Node) -> None:
    """Compute and store every element of `result`, a node of the group."""
    shape = shape_of(result)
    target = k.tensor(result)
    order = memory_order(k.strides(result), shape, k.ranges.maximum)
    runs = _runs(group, k, order) if group.is_pointwise else [[dim] for dim in order]

    def body(position: list[Expr]) -> None:
        index: list[Expr] = [integer(0)] * len(shape)
        for run, i in zip(runs, position, strict=True):
            index[run[-1]] = i
        target.store(index, At(k, group.nodes)(result, index))

    extents = [product([shape[dim] for dim in run]) for run in runs]
    lanes = vector_lanes(group, k)
    if any(name_of(node) in GUARDED for node in group.nodes) and _is_lane_conditional(group, k, len(shape), order):
        lanes = 1
    nest(k, extents, body, lanes, COST)


def vector_lanes(group: Group, k: KernelBuilder) -> int:
    """Lanes by the widest type that the group computes in."""
    types = [dtype_of(node) for node in group.nodes] + [dtype_of(value) for value in group.inputs if rank_of(value)]
    widest = min(k.isa.lanes(dtype) for dtype in types)
    return max(widest, k.isa.lanes("float32"))


def _runs(group: Group, k: KernelBuilder, order: tuple[int, ...]) -> list[list[int]]:
    """Dimensions in memory order, joined to runs wherever every operand steps evenly from one into the next."""
    shape = shape_of(group.output)
    strides = [k.strides(group.output)]
    for value in group.inputs:
        strides.append(_aligned(k, value, len(shape)))
    barriers = {axis for node in group.nodes for axis in _channel_axes(node)}
    runs: list[list[int]] = []
    for dim in order:
        if shape[dim] == 1 and runs:
            continue
        outer = runs[-1][-1] if runs else None
        if (
            outer is not None
            and not {outer, dim} & barriers
            and all(simplify(item[dim] * shape[dim] - item[outer]) == 0 for item in strides)
        ):
            runs[-1].append(dim)
        elif outer is not None and shape[outer] == 1 and len(runs) == 1 and len(runs[0]) == 1:
            runs[-1] = [dim]
        else:
            runs.append([dim])
    return runs


def _aligned(k: KernelBuilder, value: fx.Node, rank: int) -> tuple[Size, ...]:
    """An operand's step along each dimension of the result; 0 where it is broadcast."""
    shape = shape_of(value)
    if len(shape) > rank:
        return (0,) * rank
    steps = [0 if size == 1 else stride for size, stride in zip(shape, k.strides(value), strict=True)]
    return (*[0] * (rank - len(shape)), *steps)


def _channel_axes(node: fx.Node) -> list[int]:
    """Dimensions along which the operator reads a parameter by their index alone."""
    args = arguments(node)
    if "prelu" in name_of(node):
        return [1]
    parameters = [value for value in operands(node) if value is not args.get("x") and value is not args.get("q")]
    if args.get("axis") is None or all(rank_of(value) == 0 for value in parameters):
        return []
    return [args["axis"] % rank_of(node)]


def _is_lane_conditional(group: Group, k: KernelBuilder, rank: int, order: tuple[int, ...]) -> bool:
    """Whether a load's condition depends on the innermost dimension: such loops stay scalar."""
    lane = tirx.Var("lane", "int64")
    found: list[bool] = []

    class Probe(At):
        @contextmanager
        def guard(self, *conditions: Expr) -> Iterator[None]:
            found.extend(lane in tirx.analysis.undefined_vars(condition) for condition in conditions)
            with super().guard(*conditions):
                yield

    with IRBuilder(), T.prim_func():
        index: list[Expr] = [tirx.Var(f"i{dim}", "int64") for dim in range(rank)]
        index[order[-1]] = lane
        Probe(k, group.nodes)(group.output, index)
    return any(found)
