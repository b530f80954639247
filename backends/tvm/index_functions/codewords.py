"""Vector-quantized and sparse weights, element by element."""

from __future__ import annotations

from typing import Any

from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import scalars
from graphc.backends.tvm.evaluate import At, index_function
from graphc.backends.tvm.kernel import Expr, Index, integer
from graphc.backends.tvm.operations import dtype_of, shape_of


def _real(at: At, node: fx.Node, index: Index) -> Expr:
    """An element of a float16 or float32 weight, as float32."""
    value = at(node, index)
    return scalars.widened(value, at.k.isa.target) if dtype_of(node) == "float16" else value


def _codeword(at: At, codebook: fx.Node, piece: Expr, pieces: int, word: Expr, element: Expr) -> Expr:
    """`piece` of `pieces`: it says which codebook, where there are several."""
    *spaces, _, _ = shape_of(codebook)
    own = [T.truncdiv(piece, integer(pieces // int(spaces[0])))] if spaces else []
    return _real(at, codebook, [*own, T.cast(word, "int64"), element])


@index_function("graphc.lookup.default")
def _lookup(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    d, pieces = integer(int(shape_of(args["codebook"])[-1])), int(shape_of(args["indices"])[-1])
    *outer, position = index
    piece = T.truncdiv(position, d)
    word = at(args["indices"], [*outer, piece])
    return _codeword(at, args["codebook"], piece, pieces, word, T.truncmod(position, d))


@index_function("graphc.partial_products.default")
def _partial_products(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    *outer, piece, word = index
    d, pieces = int(shape_of(args["codebook"])[-1]), int(shape_of(node)[-2])
    total: Expr = T.float32(0)
    for t in range(d):
        element = _codeword(at, args["codebook"], piece, pieces, word, integer(t))
        total = total + at(args["x"], [*outer, piece * d + t]) * element
    return total


@index_function("graphc.expand_2_4.default")
def _expand_2_4(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    *outer, position = index
    pair = T.truncdiv(position, integer(4)) * 2
    place = T.cast(T.truncmod(position, integer(4)), "uint8")

    def kept(i: int) -> Expr:
        here = at(args["positions"], [*outer, pair + i]) == place
        return T.Select(here, _real(at, args["values"], [*outer, pair + i]), T.float32(0))

    return kept(0) + kept(1)
