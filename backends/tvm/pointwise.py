"""Element-wise operators: one scalar function each, with torch's broadcasting and type promotion around it.

A function's parameters are named as in the operator's schema. Tensors and numbers arrive as expressions of the type
that torch computes in; parameters listed in `raw` arrive as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import brain_float, scalars
from graphc.backends.tvm.evaluate import At, broadcast, constant, index_function
from graphc.backends.tvm.kernel import Expr, Index
from graphc.backends.tvm.operations import BFLOAT16, TVM_DTYPES, dtype_of, type_of


@dataclass(frozen=True)
class Pointwise:
    """A scalar function; `parameters` are its names, `raw` those that are not converted."""

    function: Callable[..., Expr]
    parameters: tuple[str, ...]
    raw: tuple[str, ...]


POINTWISE: dict[str, Pointwise | None] = {}  # None: only broadcasts too, but with an index function of its own


def pointwise(
    *names: str, raw: tuple[str, ...] = (), parameters: tuple[str, ...] | None = None
) -> Callable[[Callable[..., Expr]], Callable[..., Expr]]:
    """Enter a scalar function under operator names; `.Tensor` and `.Scalar` overloads share one.

    parameters: the schema's names of its arguments, where the function's own differ.
    """

    def enter(function: Callable[..., Expr]) -> Callable[..., Expr]:
        entry = Pointwise(function, parameters or tuple(inspect.signature(function).parameters), raw)
        for name in names:
            POINTWISE[name] = entry
            index_function(name)(_evaluate)
        return function

    return enter


def _evaluate(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    entry = POINTWISE[str(node.target)]
    assert entry is not None
    converted = [name for name in entry.parameters if name not in entry.raw]
    dtype = compute_dtype([args[name] for name in converted], node)

    def operand(name: str) -> Any:
        value = args[name]
        if isinstance(value, fx.Node):
            expression = at(value, broadcast(index, value))
            return expression if name in entry.raw else cast(expression, dtype_of(value), dtype)
        if name in entry.raw or value is None:
            return value
        return at.number(value, dtype)

    result = entry.function(*[operand(name) for name in entry.parameters])
    kind = dtype_of(node)
    return cast(result, str(result.ty.dtype), kind)


def compute_dtype(values: list[Any], node: fx.Node) -> str:
    """The type torch computes in: the result's, or what the operands promote to where the result is a truth value."""
    result = type_of(node).dtype
    if result is not torch.bool:
        return TVM_DTYPES[result]

    def sample(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return torch.empty([1] * len(type_of(value).shape), dtype=type_of(value).dtype, device="meta")
        return 0 if isinstance(value, sympy.Expr) else value

    promoted = sample(values[0])
    for value in values[1:]:
        promoted = torch.empty(promoted.shape, dtype=torch.result_type(promoted, sample(value)), device="meta")
    return TVM_DTYPES[promoted.dtype]


def cast(value: Expr, source: str, target: str) -> Expr:
    """Convert between types as torch does."""
    if source == target:
        return value
    if source == BFLOAT16:
        return cast(brain_float.widen(value), "float32", target)
    if target == BFLOAT16:
        return brain_float.narrow(cast(value, source, "float32"))
    if target == "bool":
        return scalars.unequal(value, constant(0, source))
    if source == "bool":
        return T.Select(value, constant(1, target), constant(0, target))
    if source.startswith("float") and not target.startswith("float"):
        return scalars.to_integer(value, target)
    return T.cast(value, target)
