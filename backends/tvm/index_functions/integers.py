"""quantize and dequantize, exact on every target.

`quantize` divides and rounds half to even as IEEE 754 says; no multiplication stands next to an addition there, so
nothing can be contracted into a fused multiply-add.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import scalars
from graphc.backends.tvm.evaluate import At, index_function
from graphc.backends.tvm.kernel import Expr, Index, integer
from graphc.backends.tvm.operations import dtype_of, rank_of, shape_of
from graphc.backends.tvm.pointwise import POINTWISE


def parameter(at: At, node: fx.Node, axis: int | None, index: Index) -> Expr:
    """A parameter [] or [C] at the channel of `index`."""
    return at(node, [channel(node, axis, index)] if rank_of(node) else [])


def channel(node: fx.Node, axis: int | None, index: Index) -> Expr:
    """Where a parameter [C] has its element for `index`."""
    return integer(0) if axis is None or shape_of(node) == (1,) else index[axis % len(index)]


def clamped(value: Expr, qmin: int, qmax: int, dtype: str) -> Expr:
    """An integer within [qmin, qmax], as `dtype`."""
    kind = getattr(T, str(value.ty.dtype))
    return T.cast(T.min(T.max(value, kind(qmin)), kind(qmax)), dtype)


@index_function("graphc.quantize.default")
def _quantize(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    known = _known_scalars(at, args) if at.k.isa.fused_multiply_add else None
    if known is not None:
        return T.cast(_known_quantized(at(args["x"], index), *known, args["qmin"], args["qmax"]), dtype_of(node))
    steps = scalars.round_half_even(at(args["x"], index) / parameter(at, args["scale"], args["axis"], index))
    # Operands in this order: where x is NaN the comparison fails and the lower limit is taken.
    limit = T.float32(2.0**30)
    bounded = T.Select(steps > -limit, T.Select(steps < limit, steps, limit), -limit)
    zero = parameter(at, args["zero_point"], args["axis"], index)
    return clamped(
        scalars.to_integer(bounded, "int32") + T.cast(zero, "int32"), args["qmin"], args["qmax"], dtype_of(node)
    )


def _known_scalars(at: At, args: dict[str, Any]) -> tuple[np.float32, int] | None:
    """One scale and zero point for all, where they are known and of an ordinary size."""
    scale, zero = at.k.around.array(args["scale"]), at.k.around.array(args["zero_point"])
    if scale is None or zero is None or scale.size != 1 or zero.size != 1:
        return None
    value, mantissa = np.float32(scale.item()), int(scale.view(np.uint32).item()) & 0x7FFFFF
    small = max(abs(zero.item()), abs(args["qmin"]), abs(args["qmax"])) < 2**16
    ordinary = 2.0**-60 < value < 2.0**60 and mantissa != 0x7FFFFF and small
    return (value, int(zero.item())) if ordinary else None


def _known_quantized(x: Expr, scale: np.float32, zero: int, qmin: int, qmax: int) -> Expr:
    """The int32 result with no division: the quotient by the rounded reciprocal, corrected by its remainder, is the
    rounded quotient (Markstein, Computation of Elementary Functions on the IBM RISC System/6000, 1990, theorem 8.4).

    x is clamped instead of the result, which comes to the same: the bounds' own quotients round to whole numbers.
    """
    low, high = (T.float32(float(np.float32((bound - zero) * scale))) for bound in (qmin, qmax))
    x = T.Bind(T.Select(x > low, x, low))  # the lower limit where x is NaN
    x = T.Bind(T.Select(x < high, x, high))
    reciprocal, divisor = T.float32(float(np.float32(1) / scale)), T.float32(float(scale))
    quotient = T.Bind(x * reciprocal)
    remainder = scalars.fused_multiply_add(T.float32(0.0) - quotient, divisor, x)
    exact = T.Bind(scalars.fused_multiply_add(remainder, reciprocal, quotient))
    # The sum's lowest bits are the number, rounded half to even.
    return T.reinterpret("int32", exact + T.float32(1.5 * 2.0**23)) - T.int32(0x4B400000 - zero)


@index_function("graphc.dequantize.default")
def _dequantize(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    zero = T.cast(parameter(at, args["zero_point"], args["axis"], index), "int32")
    steps = T.cast(T.cast(at(args["q"], index), "int32") - zero, "float32")
    return steps * parameter(at, args["scale"], args["axis"], index)


POINTWISE.update(dict.fromkeys(("graphc.quantize.default", "graphc.dequantize.default")))
