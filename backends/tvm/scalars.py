"""Comparisons, choices and conversions of TIR expressions, right for NaN and vectorizable by TVM.

Comparisons are ordered so that NaN survives: `T.max(a, x)` is `a > x ? a : x`, which gives x where x is NaN.
"""

from __future__ import annotations

import math

from tvm import tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.kernel import Expr
from graphc.target import Target


def dtype(x: Expr) -> str:
    return str(x.ty.dtype)


def is_float(x: Expr) -> bool:
    return dtype(x).startswith("float")


def number(x: Expr, value: float) -> Expr:
    """A constant of x's type."""
    kind = getattr(T, dtype(x))
    return kind(value) if is_float(x) else kind(int(value))


def round_half_even(x: Expr) -> Expr:
    """The nearest whole number, as LLVM's own operation: TVM's is not vectorized."""
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id("llvm.nearbyint"), x, dtype=dtype(x))


def fused_multiply_add(a: Expr, b: Expr, c: Expr) -> Expr:
    """a * b + c, rounded once; only where the instruction set has it."""
    return T.call_llvm_pure_intrin(T.llvm_lookup_intrinsic_id("llvm.fma"), a, b, c, dtype=dtype(a))


def wrapping_add(a: Expr, b: Expr) -> Expr:
    """Vectors of int32 modulo 2^32. TVM's own sum is one that LLVM may take never to overflow."""
    return _wrapping("add", a, b)


def wrapping_subtract(a: Expr, b: Expr) -> Expr:
    return _wrapping("sub", a, b)


def wrapping_multiply(a: Expr, b: Expr) -> Expr:
    return _wrapping("mul", a, b)


def _wrapping(operation: str, a: Expr, b: Expr) -> Expr:
    lanes = int(dtype(a).partition("x")[2])
    every, count = T.broadcast(T.bool(True), lanes), T.int32(lanes)
    name = T.llvm_lookup_intrinsic_id(f"llvm.vp.{operation}")
    return T.call_llvm_pure_intrin(name, a, b, every, count, dtype=dtype(a))


def to_integer(x: Expr, kind: str) -> Expr:
    """A float cut to an integer type, within its range. Through its bits: TVM's interval analysis of the index
    arithmetic would otherwise follow the conversion into float expressions, which it cannot represent."""
    bits = {"float32": "int32", "float64": "int64"}[dtype(x)]
    return T.cast(T.reinterpret(dtype(x), T.reinterpret(bits, x)), kind)


def equal(a: Expr, b: Expr) -> Expr:
    """a == b, as an expression: Python's own operator on expressions answers another question."""
    return tirx.EQ(a, b)


def unequal(a: Expr, b: Expr) -> Expr:
    """a != b, true where either is NaN."""
    return T.Or(tirx.NE(a, b), T.Or(is_nan(a), is_nan(b))) if is_float(a) else tirx.NE(a, b)


def is_infinite(x: Expr) -> Expr:
    return equal(absolute(x), number(x, math.inf)) if is_float(x) else T.bool(False)


def is_nan(x: Expr) -> Expr:
    """By its bits: TVM's own test is not vectorized."""
    if not is_float(x):
        return T.bool(False)
    bits, infinity = {"float32": ("int32", 0x7F800000), "float64": ("int64", 0x7FF0000000000000)}[dtype(x)]
    return T.reinterpret(bits, absolute(x)) > getattr(T, bits)(infinity)


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger; NaN where either is NaN."""
    if not is_float(b) or hasattr(a, "value"):  # a constant is no NaN, and b's NaN survives
        return T.max(a, b)
    return T.Select(T.Or(a > b, is_nan(a)), a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    """The smaller; NaN where either is NaN."""
    if not is_float(b) or hasattr(a, "value"):
        return T.min(a, b)
    return T.Select(T.Or(a < b, is_nan(a)), a, b)


def absolute(x: Expr) -> Expr:
    if is_float(x):
        bits = {"float32": ("int32", 0x7FFFFFFF), "float64": ("int64", 0x7FFFFFFFFFFFFFFF)}[dtype(x)]
        return T.reinterpret(dtype(x), T.bitwise_and(T.reinterpret(bits[0], x), getattr(T, bits[0])(bits[1])))
    return x if dtype(x).startswith("u") else T.max(x, -x)


def sign(x: Expr) -> Expr:
    """-1, 0 or 1; 0 where x is NaN."""
    one, zero = number(x, 1), number(x, 0)
    return T.Select(x > zero, one, T.Select(x < zero, zero - one, zero))


def copy_sign(magnitude: Expr, x: Expr) -> Expr:
    """A non-negative float32 with the sign of x."""
    bits = T.bitwise_and(T.reinterpret("int32", x), T.int32(-(2**31)))
    return T.reinterpret("float32", T.bitwise_or(T.reinterpret("int32", magnitude), bits))


def nonzero(divisor: Expr) -> Expr:
    """An integer divisor, 1 instead of 0: a division by zero must not stop the program."""
    return T.Select(equal(divisor, number(divisor, 0)), number(divisor, 1), divisor)


def differs(a: Expr, b: Expr) -> Expr:
    """Exclusive or of truth values."""
    return T.Or(T.And(a, T.Not(b)), T.And(T.Not(a), b))


def widened(x: Expr, target: Target) -> Expr:
    """A float16 as float32. Without an instruction for it, by moving its bits into place; finite numbers only."""
    kind = dtype(x)
    real, whole, half = (kind.replace("float16", name) for name in ("float32", "uint32", "uint16"))
    if target.arch == "arm64" or target.has("f16c"):
        return T.cast(x, real)
    bits = T.cast(T.reinterpret(half, x), whole)
    magnitude = T.reinterpret(real, T.shift_left(T.bitwise_and(bits, T.uint32(0x7FFF)), T.uint32(13)))
    sign = T.shift_left(T.bitwise_and(bits, T.uint32(0x8000)), T.uint32(16))
    scaled = T.reinterpret(whole, magnitude * T.float32(2.0**112))
    return T.reinterpret(real, T.bitwise_or(scaled, sign))
