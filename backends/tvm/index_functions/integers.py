"""The graphc:: operators between real numbers and integers, exact on every target.

`rescale` is the arithmetic of the operator's reference: one 32 x 32 -> 64 bit product, a rounding shift, a clamp.
`quantize` divides and rounds half to even as IEEE 754 says; no multiplication stands next to an addition there, so
nothing can be contracted into a fused multiply-add.
"""

from __future__ import annotations

from typing import Any

from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import scalars
from graphc.backends.tvm.evaluate import At, index_function
from graphc.backends.tvm.kernel import Expr, Index, integer
from graphc.backends.tvm.operations import dtype_of, rank_of, shape_of
from graphc.backends.tvm.pointwise import POINTWISE


def _along(at: At, parameter: fx.Node, axis: int | None, index: Index) -> Expr:
    """A parameter [] or [C] at the channel of `index`."""
    if rank_of(parameter) == 0:
        return at(parameter, [])
    position = integer(0) if axis is None or shape_of(parameter) == (1,) else index[axis % len(index)]
    return at(parameter, [position])


def _clamped(value: Expr, qmin: int, qmax: int, dtype: str) -> Expr:
    kind = getattr(T, str(value.ty.dtype))
    return T.cast(T.min(T.max(value, kind(qmin)), kind(qmax)), dtype)


@index_function("graphc.rescale.default")
def _rescale(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    x = T.cast(at(args["x"], index), "int32")
    multiplier = _along(at, args["multiplier"], args["axis"], index)
    shift = T.cast(_along(at, args["shift"], args["axis"], index), "int64")
    if args["input_zero"] and dtype_of(args["x"]) == "int32":  # the difference may need 33 bits
        difference = T.cast(x, "int64") - T.int64(args["input_zero"])
    else:
        difference = T.cast(x - T.int32(args["input_zero"]), "int64")
    product = difference * T.cast(multiplier, "int64")
    half = T.shift_left(T.int64(1), shift - T.int64(1))
    rounded = T.shift_right(product + half, shift) + T.int64(args["output_zero"])
    return _clamped(rounded, args["qmin"], args["qmax"], dtype_of(node))


@index_function("graphc.quantize.default")
def _quantize(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    steps = scalars.round_half_even(at(args["x"], index) / _along(at, args["scale"], args["axis"], index))
    # Operands in this order: where x is NaN the comparison fails and the lower limit is taken.
    limit = T.float32(2.0**30)
    bounded = T.Select(steps > -limit, T.Select(steps < limit, steps, limit), -limit)
    zero = _along(at, args["zero_point"], args["axis"], index)
    return _clamped(
        scalars.to_integer(bounded, "int32") + T.cast(zero, "int32"), args["qmin"], args["qmax"], dtype_of(node)
    )


@index_function("graphc.dequantize.default")
def _dequantize(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    zero = T.cast(_along(at, args["zero_point"], args["axis"], index), "int32")
    steps = T.cast(T.cast(at(args["q"], index), "int32") - zero, "float32")
    return steps * _along(at, args["scale"], args["axis"], index)


POINTWISE.update(dict.fromkeys(("graphc.rescale.default", "graphc.quantize.default", "graphc.dequantize.default")))
