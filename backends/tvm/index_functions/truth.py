"""Choices, comparisons and logic."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from graphc.backends.tvm import scalars
from graphc.backends.tvm.kernel import Expr
from graphc.backends.tvm.pointwise import cast, pointwise


@pointwise(
    "aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar", raw=("condition",)
)
def _where(condition: Expr, self: Expr, other: Expr) -> Expr:
    return T.Select(condition, self, other)


@pointwise("aten.masked_fill.Scalar", "aten.masked_fill.Tensor", raw=("mask",))
def _masked_fill(self: Expr, mask: Expr, value: Expr) -> Expr:
    return T.Select(mask, value, self)


for _name, _compare in {
    "eq": lambda self, other: scalars.equal(self, other),
    "ne": lambda self, other: scalars.unequal(self, other),
    "lt": lambda self, other: self < other,
    "le": lambda self, other: self <= other,
    "gt": lambda self, other: self > other,
    "ge": lambda self, other: self >= other,
}.items():
    pointwise(f"aten.{_name}.Tensor", f"aten.{_name}.Scalar")(_compare)


def _truth(value: Expr) -> Expr:
    return cast(value, str(value.ty.dtype), "bool")


@pointwise("aten.logical_and.default")
def _logical_and(self: Expr, other: Expr) -> Expr:
    return T.And(_truth(self), _truth(other))


@pointwise("aten.logical_or.default")
def _logical_or(self: Expr, other: Expr) -> Expr:
    return T.Or(_truth(self), _truth(other))


@pointwise("aten.logical_xor.default")
def _logical_xor(self: Expr, other: Expr) -> Expr:
    return scalars.differs(_truth(self), _truth(other))


@pointwise("aten.logical_not.default")
def _logical_not(self: Expr) -> Expr:
    return T.Not(_truth(self))


@pointwise("aten.bitwise_and.Tensor", "aten.bitwise_and.Scalar")
def _bitwise_and(self: Expr, other: Expr) -> Expr:
    return T.And(self, other) if self.ty.dtype == "bool" else T.bitwise_and(self, other)


@pointwise("aten.bitwise_or.Tensor", "aten.bitwise_or.Scalar")
def _bitwise_or(self: Expr, other: Expr) -> Expr:
    return T.Or(self, other) if self.ty.dtype == "bool" else T.bitwise_or(self, other)


@pointwise("aten.bitwise_xor.Tensor", "aten.bitwise_xor.Scalar")
def _bitwise_xor(self: Expr, other: Expr) -> Expr:
    return scalars.differs(self, other) if self.ty.dtype == "bool" else T.bitwise_xor(self, other)


@pointwise("aten.bitwise_not.default")
def _bitwise_not(self: Expr) -> Expr:
    return T.Not(self) if self.ty.dtype == "bool" else T.bitwise_not(self)
