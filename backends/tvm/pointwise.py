"""Element-wise operators: one scalar function each, with torch's broadcasting and type promotion around it.

A function's parameters are named as in the operator's schema. Tensors and numbers arrive as expressions of the type
that torch computes in; parameters listed in `raw` arrive as they are.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import mathematics as m
from graphc.backends.tvm.evaluate import At, broadcast, constant, index_function
from graphc.backends.tvm.kernel import Expr, Index
from graphc.backends.tvm.operations import TVM_DTYPES, dtype_of, type_of


@dataclass(frozen=True)
class Pointwise:
    """A scalar function; `parameters` are its names, `raw` those that are not converted."""

    function: Callable[..., Expr]
    parameters: tuple[str, ...]
    raw: tuple[str, ...]


POINTWISE: dict[str, Pointwise | None] = {}  # None: only broadcasts too, but with an index function of its own


def pointwise(*names: str, raw: tuple[str, ...] = ()) -> Callable[[Callable[..., Expr]], Callable[..., Expr]]:
    """Enter a scalar function under operator names; `.Tensor` and `.Scalar` overloads share one."""

    def enter(function: Callable[..., Expr]) -> Callable[..., Expr]:
        entry = Pointwise(function, tuple(inspect.signature(function).parameters), raw)
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
    samples = [
        torch.empty([1] * len(type_of(value).shape), dtype=type_of(value).dtype, device="meta")
        if isinstance(value, fx.Node)
        else (0 if isinstance(value, sympy.Expr) else value)
        for value in values
    ]
    promoted = samples[0]
    for sample in samples[1:]:
        promoted = torch.empty(promoted.shape, dtype=torch.result_type(promoted, sample), device="meta")
    return TVM_DTYPES[promoted.dtype]


def cast(value: Expr, source: str, target: str) -> Expr:
    """Convert between types as torch does."""
    if source == target:
        return value
    if target == "bool":
        return m.unequal(value, constant(0, source))
    if source == "bool":
        return T.Select(value, constant(1, target), constant(0, target))
    if source.startswith("float") and not target.startswith("float"):
        return m.to_integer(value, target)
    return T.cast(value, target)


def _is(value: Any, number: float) -> bool:
    """Whether an expression is this very constant."""
    return getattr(value, "value", None) == number


# -- arithmetic --------------------------------------------------------------------------------------


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
    if m.is_float(self):
        return T.floor(self / other) if rounding_mode == "floor" else T.trunc(self / other)
    divisor = m.nonzero(other)
    return T.floordiv(self, divisor) if rounding_mode == "floor" else T.truncdiv(self, divisor)


@pointwise("aten.floor_divide.default", "aten.floor_divide.Scalar")
def _floor_divide(self: Expr, other: Expr) -> Expr:
    return _div_mode(self, other, "floor")


@pointwise("aten.remainder.Tensor", "aten.remainder.Scalar")
def _remainder(self: Expr, other: Expr) -> Expr:
    if m.is_float(self):
        return self - T.floor(self / other) * other
    return T.floormod(self, m.nonzero(other))


@pointwise("aten.fmod.Tensor", "aten.fmod.Scalar")
def _fmod(self: Expr, other: Expr) -> Expr:
    if m.is_float(self):
        return self - T.trunc(self / other) * other
    return T.truncmod(self, m.nonzero(other))


@pointwise("aten.maximum.default")
def _maximum(self: Expr, other: Expr) -> Expr:
    return m.maximum(self, other)


@pointwise("aten.minimum.default")
def _minimum(self: Expr, other: Expr) -> Expr:
    return m.minimum(self, other)


@pointwise("aten.pow.Tensor_Scalar", "aten.pow.Tensor_Tensor", "aten.pow.Scalar")
def _pow(self: Expr, exponent: Expr) -> Expr:
    power = getattr(exponent, "value", None)
    if power in (0.5, -0.5) and m.is_float(self):
        return T.sqrt(self) if power > 0 else 1.0 / T.sqrt(self)
    if power is not None and power == int(power) and abs(power) <= 16:
        result = m.integer_power(self, abs(int(power)))
        return result if power >= 0 else 1.0 / result
    return m.power(self, exponent)


for _name, _function in {
    "neg": lambda self: -self,
    "abs": lambda self: m.absolute(self),
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
    "relu": lambda self: m.maximum(constant(0, str(self.ty.dtype)), self),
    "silu": lambda self: self * m.sigmoid(self),
    "floor": lambda self: T.floor(self) if m.is_float(self) else self,
    "ceil": lambda self: T.ceil(self) if m.is_float(self) else self,
    "trunc": lambda self: T.trunc(self) if m.is_float(self) else self,
    "round": lambda self: m.round_half_even(self) if m.is_float(self) else self,
    "sign": lambda self: m.sign(self),
    "isnan": lambda self: m.is_nan(self) if m.is_float(self) else T.bool(False),
    "isinf": lambda self: (
        m.equal(m.absolute(self), constant(math.inf, str(self.ty.dtype))) if m.is_float(self) else T.bool(False)
    ),
}.items():
    # Every function of one tensor takes it by the schema's name.
    pointwise(f"aten.{_name}.default")(lambda self, function=_function: function(self))
    POINTWISE[f"aten.{_name}.default"] = Pointwise(_function, ("self",), ())


# -- activations -------------------------------------------------------------------------------------


@pointwise("aten.gelu.default", raw=("approximate",))
def _gelu(self: Expr, approximate: str) -> Expr:
    if approximate == "tanh":
        return self * 0.5 * (1.0 + m.tanh(math.sqrt(2 / math.pi) * (self + 0.044715 * self * self * self)))
    return self * 0.5 * (1.0 + m.erf(self * math.sqrt(0.5)))


@pointwise("aten.hardtanh.default")
def _hardtanh(self: Expr, min_val: Expr, max_val: Expr) -> Expr:
    return m.minimum(max_val, m.maximum(min_val, self))


@pointwise("aten.relu6.default")
def _relu6(self: Expr) -> Expr:
    return _hardtanh(self, constant(0, str(self.ty.dtype)), constant(6, str(self.ty.dtype)))


@pointwise("aten.hardswish.default")
def _hardswish(self: Expr) -> Expr:
    return self * _relu6(self + 3.0) / 6.0


@pointwise("aten.hardsigmoid.default")
def _hardsigmoid(self: Expr) -> Expr:
    return _relu6(self + 3.0) / 6.0


@pointwise("aten.leaky_relu.default")
def _leaky_relu(self: Expr, negative_slope: Expr) -> Expr:
    return T.Select(self > 0.0, self, self * negative_slope)


@pointwise("aten.elu.default")
def _elu(self: Expr, alpha: Expr, scale: Expr, input_scale: Expr) -> Expr:
    return T.Select(self > 0.0, self, alpha * m.expm1(self * input_scale)) * scale


@pointwise("aten.softplus.default")
def _softplus(self: Expr, beta: Expr, threshold: Expr) -> Expr:
    scaled = self * beta
    return T.Select(scaled > threshold, self, m.log1p(m.exp(m.minimum(threshold, scaled))) / beta)


@pointwise("aten.clamp.default")
def _clamp(self: Expr, min: Expr | None, max: Expr | None) -> Expr:
    if min is not None:
        self = m.maximum(min, self)
    return self if max is None else m.minimum(max, self)


pointwise("aten.clamp.Tensor")(_clamp)


@pointwise("aten.clamp_min.default")
def _clamp_min(self: Expr, min: Expr) -> Expr:
    return _clamp(self, min, None)


@pointwise("aten.clamp_max.default")
def _clamp_max(self: Expr, max: Expr) -> Expr:
    return _clamp(self, None, max)


@index_function("aten._prelu_kernel.default", "aten.prelu.default")
def _prelu(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    weight = args["weight"]
    shape = type_of(weight).shape
    along = [index[1]] if len(shape) == 1 and shape[0] != 1 and len(index) > 1 else broadcast(index, weight)
    x = at(args["self"], index)
    return T.Select(x > 0.0, x, x * at(weight, along))


# -- choices and truth -------------------------------------------------------------------------------


@pointwise(
    "aten.where.self", "aten.where.ScalarOther", "aten.where.ScalarSelf", "aten.where.Scalar", raw=("condition",)
)
def _where(condition: Expr, self: Expr, other: Expr) -> Expr:
    return T.Select(condition, self, other)


@pointwise("aten.masked_fill.Scalar", "aten.masked_fill.Tensor", raw=("mask",))
def _masked_fill(self: Expr, mask: Expr, value: Expr) -> Expr:
    return T.Select(mask, value, self)


for _name, _compare in {
    "eq": lambda self, other: m.equal(self, other),
    "ne": lambda self, other: m.unequal(self, other),
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
    return m.differs(_truth(self), _truth(other))


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
    return m.differs(self, other) if self.ty.dtype == "bool" else T.bitwise_xor(self, other)


@pointwise("aten.bitwise_not.default")
def _bitwise_not(self: Expr) -> Expr:
    return T.Not(self) if self.ty.dtype == "bool" else T.bitwise_not(self)


# -- conversions -------------------------------------------------------------------------------------

CONVERSIONS = ("aten._to_copy.default", "aten.to.dtype", "aten.copy.default")


@index_function(*CONVERSIONS)
def _convert(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    source = args["src"] if "src" in args else args["self"]
    return cast(at(source, broadcast(index, source)), dtype_of(source), dtype_of(node))


POINTWISE.update(dict.fromkeys((*CONVERSIONS, "aten._prelu_kernel.default", "aten.prelu.default")))


@index_function("aten.batch_norm.default", "aten._native_batch_norm_legit_no_training.default#0")
def _batch_norm(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    channel = [index[1]]
    mean, variance = at(args["running_mean"], channel), at(args["running_var"], channel)
    value = (at(args["input"], index) - mean) * (1.0 / T.sqrt(variance + T.float32(args["eps"])))
    value = value if args["weight"] is None else value * at(args["weight"], channel)
    return value if args["bias"] is None else value + at(args["bias"], channel)
