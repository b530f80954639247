"""bfloat16 in kernels: its 16 bits (uint16) in memory and between operators, float32 wherever it is computed with.

The upper half of a float32 is a bfloat16, so widening is a shift and exact. Narrowing rounds to the nearest, ties to
even; NaN stays NaN. CPUs with instructions for it flush denormals (below 2^-126) to nought, in the conversion and in
dot products alike; everything else here keeps them, as torch does.

TVM has no code for bfloat16 on these targets, and LLVM's intrinsics take a type that TVM cannot write. So narrowing is
an operator of its own in TIR, which vectorizes as any other does, and what it becomes for a target, like the dot
product, is a function in LLVM's IR that is inlined where it is called.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tvm
from tvm import tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.instruction_sets import InstructionSet

Expr = Any

_NARROW = "tirx.narrow_bfloat16"
_LANES = (1, 2, 4, 8, 16, 32, 64)
_FEATURES = ("avx512bf16", "bf16")  # x86-64, arm64

_NARROWING = """
define linkonce_odr {bits} @graphc_narrow_{lanes}({float} %x) alwaysinline {{
  %rounded = fptrunc {float} %x to {bfloat}
  %bits = bitcast {bfloat} %rounded to {bits}
  ret {bits} %bits
}}"""

# {bits}: LLVM's name of the intrinsic's width.
_DOT = """
declare <{lanes} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(
    <{lanes} x float>, <{pairs} x bfloat>, <{pairs} x bfloat>)
define linkonce_odr <{lanes} x float> @graphc_dot_bfloat16_{lanes}(
    <{lanes} x float> %sums, <{pairs} x i16> %left, <{pairs} x i16> %right) alwaysinline {{
  %a = bitcast <{pairs} x i16> %left to <{pairs} x bfloat>
  %b = bitcast <{pairs} x i16> %right to <{pairs} x bfloat>
  %result = call <{lanes} x float> @llvm.x86.avx512bf16.dpbf16ps.{bits}(
      <{lanes} x float> %sums, <{pairs} x bfloat> %a, <{pairs} x bfloat> %b)
  ret <{lanes} x float> %result
}}"""


def llvm_functions(isa: InstructionSet) -> str:
    """The definitions, in LLVM's IR, that kernels for `isa` may call."""
    if not _converts(isa.target.features):
        return ""
    texts = [_narrowing(lanes) for lanes in _LANES]
    if isa.target.has("avx512bf16"):
        texts += [_DOT.format(lanes=lanes, pairs=2 * lanes, bits=32 * lanes) for lanes in (4, 8, 16)]
    return "\n".join(texts)


def _narrowing(lanes: int) -> str:
    def kind(element: str) -> str:
        return f"<{lanes} x {element}>" if lanes > 1 else element

    return _NARROWING.format(lanes=lanes, bits=kind("i16"), float=kind("float"), bfloat=kind("bfloat"))


def _converts(features: tuple[str, ...]) -> bool:
    return any(feature in features for feature in _FEATURES)


def bits(value: float) -> int:
    """The bits of a number as bfloat16."""
    if math.isnan(value):
        return 0x7FC0
    whole = int(np.float32(value).view(np.uint32))
    return (whole + 0x7FFF + (whole >> 16 & 1)) >> 16


def widen_array(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """uint16 bits -> float32."""
    return (array.astype(np.uint32) << 16).view(np.float32)


def widen(x: Expr) -> Expr:
    """The float32 value of bfloat16 bits."""
    lanes = str(x.ty.dtype).removeprefix("uint16")
    wide = T.cast(x, f"uint32{lanes}")
    return T.reinterpret(f"float32{lanes}", T.shift_left(wide, _all(T.uint32(16), wide)))


def narrow(x: Expr) -> Expr:
    """The bits of a float32 rounded to bfloat16."""
    return tirx.call_intrin(str(x.ty.dtype).replace("float32", "uint16"), _NARROW, x)


def _all(value: Expr, like: Expr) -> Expr:
    lanes = str(like.ty.dtype).partition("x")[2]
    return T.broadcast(value, int(lanes)) if lanes else value


def dot(sums: Expr, left: Expr, right: Expr) -> Expr:
    """sums + left[2i] right[2i] + left[2i+1] right[2i+1], by the dot product of AVX512-BF16.

    Products are exact, each of the two sums is rounded to the nearest, denormals are nought.
    """
    kind = str(sums.ty.dtype)
    return T.call_pure_extern(kind, f"graphc_dot_bfloat16_{kind.partition('x')[2]}", sums, left, right)


def multiply(sums: Expr, left: Expr, right: Expr) -> Expr:
    """The same by multiply-adds of float32."""
    kind = str(sums.ty.dtype)
    wide = kind.replace("float", "uint")

    def halves(pairs: Expr) -> tuple[Expr, Expr]:
        words = T.reinterpret(wide, pairs)
        low = T.shift_left(words, _all(T.uint32(16), words))
        high = T.bitwise_and(words, _all(T.uint32(0xFFFF0000), words))
        return T.reinterpret(kind, low), T.reinterpret(kind, high)

    (a, b), (c, d) = halves(left), halves(right)
    return sums + a * c + b * d


def _lower_narrow(call: Expr) -> Expr:
    """`narrow` in the code of the target at hand: an instruction, or the rounding spelled out in integers."""
    x = call.args[0]
    kind = str(x.ty.dtype)
    lanes = kind.partition("x")[2]
    features = tuple(str(flag).removeprefix("+") for flag in tvm.target.Target.current().attrs["mattr"])
    if _converts(features):
        return T.call_pure_extern(kind.replace("float32", "uint16"), f"graphc_narrow_{lanes or 1}", x)
    whole = T.reinterpret(kind.replace("float", "uint"), x)

    def number(value: int) -> Expr:
        return _all(T.uint32(value), whole)

    odd = T.bitwise_and(T.shift_right(whole, number(16)), number(1))
    rounded = T.shift_right(whole + odd + number(0x7FFF), number(16))
    is_nan = T.bitwise_and(whole, number(0x7FFFFFFF)) > number(0x7F800000)
    return T.cast(T.Select(is_nan, number(0x7FC0), rounded), kind.replace("float32", "uint16"))


tvm.ir.register_op_attr(_NARROW, "TVectorizable", True)
tvm.ir.register_op_attr(_NARROW, "TCallEffectKind", 1)  # pure
tirx.op.register_intrin_lowering(_NARROW, target="llvm", f=_lower_narrow, level=99)
