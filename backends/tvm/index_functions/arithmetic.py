"""Element-wise arithmetic, elementary functions and conversions."""

from __future__ import annotations

import math
from typing import Any

from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import mathematics as m
from graphc.backends.tvm import scalars
from graphc.backends.tvm.evaluate import At, broadcast, constant, index_function
from graphc.backends.tvm.kernel import Expr, Index
from graphc.backends.tvm.operations import dtype_of
from graphc.backends.tvm.pointwise import POINTWISE, cast, pointwise


def _is(value: Any, number: float) -> bool:
    """Whether an expression is this very constant."""
    return getattr(value, "value", None) == number


@pointwise("aten.add.Tensor", "aten.add.Scalar")
def _add(self: Expr, other: Expr, alpha: Expr) -> Expr:
    return self + (other if _is(alpha, 1) else other * alpha)


@pointwise("aten.sub.Tensor", "aten.sub.Scalar")
def _sub(self: Expr, other: Expr, alpha: Expr) -> Expr:
    return self - (other if _is(alpha, 1) else other * alpha)


@pointwise("aten.rsub.Tensor", "aten.rsub.Scalar")
def _rsub(self: Expr, other: Expr, alpha: Expr) -> Expr:
    return other - (self if _is(alpha, 1) else self * alpha)


@pointwise("aten.mul.Tensor", "aten.mul.Scalar")
def _mul(self: Expr, other: Expr) -> Expr:
    return T.And(self, other) if self.ty.dtype == "bool" else self * other


@pointwise("aten.div.Tensor", "aten.div.Scalar")
def _div(self: Expr, other: Expr) -> Expr:
    return self / other


@pointwise("aten.div.Tensor_mode", "aten.div.Scalar_mode", raw=("rounding_mode",))
def _div_mode(self: Expr, other: Expr, rounding_mode: str | None) -> Expr:
    if rounding_mode is None:
        return self / other
    if scalars.is_float(self):
        return T.floor(self / other) if rounding_mode == "floor" else T.trunc(self / other)
    divisor = scalars.nonzero(other)
    return T.floordiv(self, divisor) if rounding_mode == "floor" else T.truncdiv(self, divisor)


@pointwise("aten.floor_divide.default", "aten.floor_divide.Scalar")
def _floor_divide(self: Expr, other: Expr) -> Expr:
    return _div_mode(self, other, "floor")


@pointwise("aten.remainder.Tensor", "aten.remainder.Scalar")
def _remainder(self: Expr, other: Expr) -> Expr:
    if scalars.is_float(self):
        return self - T.floor(self / other) * other
    return T.floormod(self, scalars.nonzero(other))


@pointwise("aten.fmod.Tensor", "aten.fmod.Scalar")
def _fmod(self: Expr, other: Expr) -> Expr:
    if scalars.is_float(self):
        return self - T.trunc(self / other) * other
    return T.truncmod(self, scalars.nonzero(other))


@pointwise("aten.maximum.default")
def _maximum(self: Expr, other: Expr) -> Expr:
    return scalars.maximum(self, other)


@pointwise("aten.minimum.default")
def _minimum(self: Expr, other: Expr) -> Expr:
    return scalars.minimum(self, other)


@pointwise("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def _pow(self: Expr, exponent: Expr) -> Expr:
    power = getattr(exponent, "value", None)
    if power in (0.5, -0.5) and scalars.is_float(self):
        return T.sqrt(self) if power > 0 else 1.0 / T.sqrt(self)
    if power is not None and power == int(power) and abs(power) <= 16:
        result = m.integer_power(self, abs(int(power)))
        return result if power >= 0 else 1.0 / result
    return m.power(self, exponent)


for _name, _function in {
    "neg": lambda self: -self,
    "abs": lambda self: scalars.absolute(self),
    "exp": m.exp,
    "expm1": m.expm1,
    "log": m.log,
    "log1p": m.log1p,
    "log2": lambda self: m.log(self) * (1 / math.log(2)),
    "sqrt": T.sqrt,
    "rsqrt": lambda self: 1.0 / T.sqrt(self),
    "reciprocal": lambda self: 1.0 / self,
    "sin": m.sin,
    "cos": m.cos,
    "tanh": m.tanh,
    "sigmoid": m.sigmoid,
    "erf": m.erf,
    "square": lambda self: self * self,
    "relu": lambda self: scalars.maximum(constant(0, str(self.ty.dtype)), self),
    "silu": lambda self: self * m.sigmoid(self),
    "floor": lambda self: T.floor(self) if scalars.is_float(self) else self,
    "ceil": lambda self: T.ceil(self) if scalars.is_float(self) else self,
    "trunc": lambda self: T.trunc(self) if scalars.is_float(self) else self,
    "round": lambda self: scalars.round_half_even(self) if scalars.is_float(self) else self,
    "sign": lambda self: scalars.sign(self),
    "isnan": scalars.is_nan,
    "isinf": scalars.is_infinite,
}.items():
    pointwise(f"aten.{_name}.default", parameters=("self",))(_function)

# What is computed by the polynomials of `mathematics`, which are made for float32.
TRANSCENDENTAL = frozenset(
    f"aten.{name}.default"
    for name in [
        "exp",
        "expm1",
        "log",
        "log1p",
        "log2",
        "sin",
        "cos",
        "tanh",
        "sigmoid",
        "erf",
        "silu",
        "gelu",
        "elu",
        "softplus",
    ]
)

CONVERSIONS = ("aten._to_copy.default", "aten.to.dtype", "aten.copy.default")


@index_function(*CONVERSIONS)
def _convert(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    source = args["src"] if "src" in args else args["self"]
    return cast(at(source, broadcast(index, source)), dtype_of(source), dtype_of(node))


POINTWISE.update(dict.fromkeys(CONVERSIONS))
