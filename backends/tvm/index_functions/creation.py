"""Operators that make tensors from nothing, and masks by position."""

from __future__ import annotations

from typing import Any

from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.evaluate import At, constant, index_function
from graphc.backends.tvm.kernel import Expr, Index
from graphc.backends.tvm.operations import dtype_of


@index_function(
    "aten.full.default",
    "aten.full_like.default",
    "aten.scalar_tensor.default",
    "aten.zeros.default",
    "aten.zeros_like.default",
    "aten.ones.default",
    "aten.ones_like.default",
    "aten.new_zeros.default",
    "aten.new_ones.default",
    "aten.new_full.default",
)
def _full(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    value = args.get("fill_value", args.get("s", 1 if "ones" in str(node.target) else 0))
    return at.number(value, dtype_of(node))


@index_function("aten.arange.start_step", "aten.arange.start", "aten.arange.default")
def _arange(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    dtype = dtype_of(node)
    start, step = args.get("start", 0), args.get("step", 1)
    return at.number(start, dtype) + T.cast(index[0], dtype) * at.number(step, dtype)


@index_function("aten.tril.default", "aten.triu.default")
def _triangle(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    *_, row, column = index
    lower = "tril" in str(node.target)
    difference = column - row - at.size(args["diagonal"])
    inside = difference <= 0 if lower else difference >= 0
    return T.Select(inside, at(args["self"], index), constant(0, dtype_of(node)))
