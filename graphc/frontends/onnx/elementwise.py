"""ONNX operators on each element, with numpy's broadcasting; each over torch tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from graphc.frontends.onnx.operator import Known, Operand, operator

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "BitwiseNot": torch.bitwise_not,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Softplus": lambda x: F.softplus(x, threshold=torch.inf),  # torch's default is linear above 20
    "Softsign": lambda x: x / (1 + x.abs()),
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
}

BINARY: dict[str, Callable[[Any, Any], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
    "Equal": lambda a, b: a == b,
    "Greater": lambda a, b: a > b,
    "GreaterOrEqual": lambda a, b: a >= b,
    "Less": lambda a, b: a < b,
    "LessOrEqual": lambda a, b: a <= b,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "Sub": torch.sub,
    "Xor": torch.logical_xor,
}

VARIADIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Sum": torch.add,
}

# Functions over two tensors; the others in BINARY also take a Python number on either side.
_TENSORS_ONLY = {"And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor"}


def _enter_tables() -> None:
    def unary(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def apply(x: Tensor, /) -> Tensor:
            return function(x)

        return apply

    def binary(function: Callable[[Any, Any], Tensor]) -> Callable[[Operand, Operand], Tensor]:
        def apply(a: Operand, b: Operand, /) -> Tensor:
            return function(a, b)

        return apply

    def over_tensors(function: Callable[[Any, Any], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        def apply(a: Tensor, b: Tensor, /) -> Tensor:
            return function(a, b)

        return apply

    def variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        def apply(*tensors: Tensor) -> Tensor:
            return reduce(function, tensors)

        return apply

    for name, one in UNARY.items():
        operator(name)(unary(one))
    for name, two in BINARY.items():
        operator(name)((over_tensors if name in _TENSORS_ONLY else binary)(two))
    for name, many in VARIADIC.items():
        operator(name)(variadic(many))


_enter_tables()


@operator("Div")
def divide(a: Operand, b: Operand, /) -> Tensor:
    integers = not any(isinstance(x, float) or (isinstance(x, Tensor) and x.is_floating_point()) for x in (a, b))
    return torch.div(a, b, rounding_mode="trunc" if integers else None)


@operator("Mod")
def modulo(a: Tensor, b: Operand, /, *, fmod: int = 0) -> Tensor:
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@operator("Mean")
def mean(*tensors: Tensor) -> Tensor:
    return reduce(torch.add, tensors) / len(tensors)


@operator("Pow")
def power(base: Tensor, exponent: Operand, /) -> Tensor:
    return torch.pow(base, exponent).to(base.dtype)


@operator("BitShift")
def bit_shift(a: Tensor, b: Tensor, /, *, direction: Literal["LEFT", "RIGHT"]) -> Tensor:
    return a << b if direction == "LEFT" else a >> b


@operator("IsInf")
def is_infinite(x: Tensor, /, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    return torch.isinf(x) & (((x > 0) & bool(detect_positive)) | ((x < 0) & bool(detect_negative)))


@operator("Clip")
def clip(
    x: Tensor,
    low: Operand | None = None,
    high: Operand | None = None,
    /,
    *,
    min: float | None = None,
    max: float | None = None,
) -> Tensor:
    low, high = (min if low is None else low), (max if high is None else high)
    if low is None and high is None:
        return x
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        x = x if low is None else torch.maximum(x, torch.as_tensor(low, dtype=x.dtype))
        return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype))
    return torch.clamp(x, low, high)


@operator("LeakyRelu")
def leaky_relu(x: Tensor, /, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@operator("PRelu")
def prelu(x: Tensor, slope: Tensor, /) -> Tensor:
    if x.dim() >= 2 and slope.numel() == slope.shape[slope.dim() - x.dim() + 1 if slope.dim() == x.dim() else 0]:
        per_channel = slope.dim() == x.dim() - 1 or (slope.dim() == x.dim() and slope.shape[0] == 1)
        if per_channel and slope.numel() in (1, x.shape[1]):
            return F.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


@operator("HardSigmoid")
def hard_sigmoid(x: Tensor, /, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(x)
    return torch.clamp(x * alpha + beta, 0, 1)


@operator("Elu")
def elu(x: Tensor, /, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@operator("Celu")
def celu(x: Tensor, /, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > 0, x, alpha * torch.expm1(x / alpha))


@operator("Selu")
def selu(x: Tensor, /, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


@operator("ThresholdedRelu")
def thresholded_relu(x: Tensor, /, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, 0)


@operator("Shrink")
def shrink(x: Tensor, /, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, 0))


@operator("Gelu")
def gelu(x: Tensor, /, *, approximate: Literal["none", "tanh"] = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


@operator("Swish")
def swish(x: Tensor, /, *, alpha: float = 1.0) -> Tensor:
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@operator("CumSum")
def cumulative_sum(x: Tensor, axis: Known, /, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    dim = int(axis)
    x = x.flip(dim) if reverse else x
    total = torch.cumsum(x, dim, dtype=x.dtype)
    total = total - x if exclusive else total
    return total.flip(dim) if reverse else total
