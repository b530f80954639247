"""Decoding of compressed weights, element by element: for weights that no kernel reads in their stored form."""

from __future__ import annotations

from typing import Any

from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import scalars
from graphc.backends.tvm.evaluate import At, broadcast, index_function
from graphc.backends.tvm.kernel import Expr, Index, integer
from graphc.backends.tvm.operations import dtype_of, shape_of


@index_function("graphc.unpack.default")
def _unpack(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    packed, bits = args["packed"], args["bits"]
    *outer, position = index
    first = position * bits
    byte = T.truncdiv(first, integer(8))
    window = T.cast(at(packed, [*outer, byte]), "int32")
    if 8 % bits:  # a number may lie across two bytes
        last = integer(int(shape_of(packed)[-1]) - 1)
        high = T.cast(at(packed, [*outer, T.min(byte + 1, last)]), "int32")
        window = T.bitwise_or(window, T.shift_left(high, T.int32(8)))
    shifted = T.shift_right(window, T.cast(T.truncmod(first, integer(8)), "int32"))
    return T.cast(T.bitwise_and(shifted, T.int32(2**bits - 1)), "uint8")


@index_function("graphc.dequantize_groups.default")
def _dequantize_groups(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    group = [*index[:-1], T.truncdiv(index[-1], integer(args["group"]))]

    def parameter(name: str) -> Expr:
        return at(args[name], broadcast(group, args[name]))

    steps = T.cast(at(args["q"], index), "int32")
    if args["zero_point"] is not None:
        steps = steps - T.cast(parameter("zero_point"), "int32")
    scale = parameter("scale")
    if dtype_of(args["scale"]) == "float16":
        scale = scalars.widened(scale, at.k.isa.target)
    return T.cast(steps, "float32") * scale
