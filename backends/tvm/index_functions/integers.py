"""quantize and dequantize, exact on every target.

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
    steps = scalars.round_half_even(at(args["x"], index) / parameter(at, args["scale"], args["axis"], index))
    # Operands in this order: where x is NaN the comparison fails and the lower limit is taken.
    limit = T.float32(2.0**30)
    bounded = T.Select(steps > -limit, T.Select(steps < limit, steps, limit), -limit)
    zero = parameter(at, args["zero_point"], args["axis"], index)
    return clamped(
        scalars.to_integer(bounded, "int32") + T.cast(zero, "int32"), args["qmin"], args["qmax"], dtype_of(node)
    )


@index_function("graphc.dequantize.default")
def _dequantize(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    zero = T.cast(parameter(at, args["zero_point"], args["axis"], index), "int32")
    steps = T.cast(T.cast(at(args["q"], index), "int32") - zero, "float32")
    return steps * parameter(at, args["scale"], args["axis"], index)


POINTWISE.update(dict.fromkeys(("graphc.quantize.default", "graphc.dequantize.default")))
