"""Fused groups as functions of an index: the value of a node at a logical index, from the values of its inputs.

Each operator that is no anchor is an index function, `function(at, arguments, index, node) -> expression`, found in
one table by its name. `at(node, index)` evaluates another node of the group, or loads from memory where the node lies
outside of it. Templates compose prologues and epilogues by evaluating the group's output with the anchor overridden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sympy
from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import brain_float
from graphc.backends.tvm.kernel import Expr, Index, KernelBuilder, integer
from graphc.backends.tvm.operations import BFLOAT16, arguments, name_of, shape_of
from graphc.tensor_type import Size

IndexFunction = Callable[["At", dict[str, Any], "Index", fx.Node], Expr]

INDEX_FUNCTIONS: dict[str, IndexFunction] = {}


def index_function(*names: str) -> Callable[[IndexFunction], IndexFunction]:
    """Enter an index function into the table under operator names such as `aten.permute.default`."""

    def enter(function: IndexFunction) -> IndexFunction:
        for name in names:
            INDEX_FUNCTIONS[name] = function
        return function

    return enter


class At:
    """Evaluates nodes at indices while a kernel is being built. One evaluator serves one loop body.

    inside: the nodes to compute here; all others are loaded. override: what to take for a node instead (an anchor's
    accumulator). Values are bound to variables, so that one used twice is computed once.
    """

    def __init__(
        self,
        k: KernelBuilder,
        inside: Sequence[fx.Node],
        override: dict[fx.Node, Callable[[Index], Expr]] | None = None,
    ) -> None:
        self.k = k
        self._inside = frozenset(inside)
        self._override = override or {}
        self._guards: list[Expr] = []
        self._known: dict[tuple[Any, ...], tuple[Expr, list[Expr]]] = {}

    def __call__(self, node: fx.Node, index: Index) -> Expr:
        index = list(index)
        key = (node, *map(id, index), *map(id, self._guards))
        if key not in self._known:
            # The index is kept beside the value: an id is good for as long as its object lives.
            self._known[key] = (self._compute(node, index), [*index, *self._guards])
        return self._known[key][0]

    def _compute(self, node: fx.Node, index: Index) -> Expr:
        if node in self._override:
            return self._override[node](index)
        if node in self._inside:
            return _bound(INDEX_FUNCTIONS[name_of(node)](self, arguments(node), index, node))
        value = self.k.tensor(node).load(index)
        if self._guards:
            condition = self._guards[0]
            for guard in self._guards[1:]:
                condition = T.And(condition, guard)
            value = T.if_then_else(condition, value, T.cast(T.int32(0), value.ty.dtype))
        return _bound(value)

    @contextmanager
    def guard(self, *conditions: Expr) -> Iterator[None]:
        """Loads inside read memory only where the conditions hold, and give 0 elsewhere."""
        self._guards.extend(conditions)
        yield
        del self._guards[len(self._guards) - len(conditions) :]

    def size(self, size: Size) -> Expr:
        return self.k.size(size)

    def number(self, value: Any, dtype: str) -> Expr:
        """A Python number or symbolic size as a constant of `dtype`."""
        if isinstance(value, sympy.Expr):
            return T.cast(self.k.size(value), dtype)
        return constant(value, dtype)


def _bound(value: Expr) -> Expr:
    """The value in a variable; truth values stay expressions, for TVM has no vectors of them in variables."""
    return value if str(value.ty.dtype) == "bool" else T.Bind(value)


def constant(value: Any, dtype: str) -> Expr:
    """A number as a constant of `dtype`."""
    if dtype == "bool":
        return T.bool(bool(value))
    if dtype == BFLOAT16:
        return T.uint16(brain_float.bits(float(value)))
    kind = getattr(T, dtype)
    return kind(float(value)) if dtype.startswith("float") else kind(int(value))


def broadcast(index: Index, node: fx.Node) -> list[Expr]:
    """The index into an operand that broadcasting brings to a result's `index`."""
    shape = shape_of(node)
    return [
        integer(0) if size == 1 else position
        for position, size in zip(index[len(index) - len(shape) :], shape, strict=True)
    ]
