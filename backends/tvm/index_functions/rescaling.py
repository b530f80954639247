"""graphc::rescale, equal to its reference bit for bit, in the fewest instructions that the known parameters allow.

    y = clamp(output_zero + floor((x - input_zero) * multiplier / 2^shift + 1/2), qmin, qmax)

whole    2^shift divides the multiplier: an int32 product.
float    the factor multiplier / 2^shift is a float32, and no product in reach lies halfway between two integers. One
         fused multiply-add with 1.5 * 2^23 then rounds the exact product to the nearest integer, which is found in the
         low bits of the float's representation (Intel's and Arm's default rounding: to nearest).
general  a 64-bit product and shift, as in the definition.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import scalars
from graphc.backends.tvm.evaluate import At, constant, index_function
from graphc.backends.tvm.index_functions.integers import channel, clamped, parameter
from graphc.backends.tvm.intervals import along, unclamped
from graphc.backends.tvm.kernel import Expr, Index
from graphc.backends.tvm.operations import dtype_of
from graphc.backends.tvm.pointwise import POINTWISE

Integers: TypeAlias = "np.ndarray[Any, np.dtype[np.int64]]"

# A float32 in [2^23, 2^24) has a unit of 1, and its representation counts up by one with it.
_MAGIC, _MAGIC_BITS = 3 << 22, 0x4B400000
_REACH = (1 << 22) - 1


@index_function("graphc.rescale.default")
def _rescale(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    x = T.cast(at(args["x"], index), "int32")
    multiplier, shift = at.k.around.array(args["multiplier"]), at.k.around.array(args["shift"])
    if multiplier is None or shift is None:
        return _general(at, args, index, node, x)
    multiplier, shift = multiplier.ravel().astype(np.int64), shift.ravel().astype(np.int64)
    low, high = (end - args["input_zero"] for end in along(args["x"], args["axis"], at.k.around.known))

    def table(values: np.ndarray[Any, Any]) -> Expr:
        if len(np.unique(values)) == 1:
            return constant(values.flat[0], str(values.dtype))
        buffer = at.k.constant(values, f"{args['multiplier'].name} as {values.dtype}")
        return buffer[channel(args["multiplier"], args["axis"], index)]

    if _is_whole(multiplier, shift, low, high, args):
        product = (x - T.int32(args["input_zero"])) * table((multiplier >> shift).astype(np.int32))
        y = product + T.int32(args["output_zero"])
    elif at.k.isa.fused_multiply_add and _is_float(multiplier, shift, low, high, args):
        steps = T.cast(x - T.int32(args["input_zero"]), "float32")
        magic = T.float32(float(_MAGIC + args["output_zero"]))
        rounded = scalars.fused_multiply_add(steps, table(_factor(multiplier, shift).astype(np.float32)), magic)
        y = T.reinterpret("int32", rounded) - T.int32(_MAGIC_BITS)
    else:
        return _general(at, args, index, node, x)
    first, last = unclamped(args, at.k.around.known)
    if args["qmin"] <= first.min() and last.max() <= args["qmax"]:
        return T.cast(y, dtype_of(node))
    return clamped(y, args["qmin"], args["qmax"], dtype_of(node))


def _general(at: At, args: dict[str, Any], index: Index, node: fx.Node, x: Expr) -> Expr:
    multiplier = parameter(at, args["multiplier"], args["axis"], index)
    shift = T.cast(parameter(at, args["shift"], args["axis"], index), "int64")
    if args["input_zero"] and dtype_of(args["x"]) == "int32":  # the difference may need 33 bits
        difference = T.cast(x, "int64") - T.int64(args["input_zero"])
    else:
        difference = T.cast(x - T.int32(args["input_zero"]), "int64")
    product = difference * T.cast(multiplier, "int64")
    half = T.shift_left(T.int64(1), shift - T.int64(1))
    rounded = T.shift_right(product + half, shift) + T.int64(args["output_zero"])
    return clamped(rounded, args["qmin"], args["qmax"], dtype_of(node))


def _factor(multiplier: Integers, shift: Integers) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.ldexp(multiplier.astype(np.float64), -shift.astype(np.int32))


def _is_whole(multiplier: Integers, shift: Integers, low: Integers, high: Integers, args: dict[str, Any]) -> bool:
    if (multiplier & ((1 << shift) - 1)).any():
        return False
    ends = np.concatenate([(end * (multiplier >> shift) + args["output_zero"]) for end in (low, high)])
    return bool((np.abs(ends) < 1 << 31).all() and (np.abs(low) < 1 << 31).all() and (np.abs(high) < 1 << 31).all())


def _is_float(multiplier: Integers, shift: Integers, low: Integers, high: Integers, args: dict[str, Any]) -> bool:
    """[low, high]: where x - input_zero lies, one interval for all channels or one each."""
    factor, zero = _factor(multiplier, shift), args["output_zero"]
    reach = np.maximum(np.abs(low), np.abs(high))
    if (multiplier & 0x7F).any() or (reach >= 1 << 31).any() or (reach * factor + abs(zero) >= _REACH).any():
        return False
    # From here on y is clamped: only smaller products need be exact, of differences that float32 holds.
    clamped_from = np.ceil((max(args["qmax"] - zero, zero - args["qmin"]) + 1) / factor)
    needed = np.minimum(reach, clamped_from)
    # x * multiplier = 2^(shift - 1) modulo 2^shift takes an x that is a multiple of this.
    halfway = 2.0 ** (shift - 1) / (multiplier & -multiplier)
    sure = (needed <= 1 << 24) & ((halfway < 1) | (halfway > needed))
    low, high, multiplier, shift = np.broadcast_arrays(low, high, multiplier, shift)[:4]
    return all(
        _same_steps(int(multiplier[c]), int(shift[c]), int(low[c]), int(high[c]), args) for c in np.flatnonzero(~sure)
    )


def _same_steps(multiplier: int, shift: int, low: int, high: int, args: dict[str, Any]) -> bool:
    """Whether the float form is right for one channel. Both forms never decrease: it is where y makes its steps."""
    qmin, qmax, zero = (int(args[name]) for name in ("qmin", "qmax", "output_zero"))

    def defined(x: int) -> int:
        return min(max(((x * multiplier + (1 << (shift - 1))) >> shift) + zero, qmin), qmax)

    def computed(x: int) -> int:
        product = Fraction(int(np.float32(x)) * multiplier, 1 << shift)
        return min(max(round(product + zero), qmin), qmax)  # half to even, as a float's sum

    if defined(high) - defined(low) > 1024:
        return False
    for level in range(defined(low), defined(high) + 1):
        step = -(-((2 * (level - zero) - 1) << (shift - 1)) // multiplier)  # the least x that reaches the level
        for x in (step - 1, step):
            x = min(max(x, low), high)
            if defined(x) != computed(x):
                return False
    return True


POINTWISE["graphc.rescale.default"] = None
