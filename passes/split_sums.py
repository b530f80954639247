"""Multiply by the terms of a weight that is a sum one after the other, where kernels read each of them as stored.

    x @ (Q + A @ B)^T + b  =  (x @ Q^T + b) + x @ (A @ B)^T

A sum as it is would be decoded at load into a dense matrix, however small its terms are. `split_low_rank` afterwards
takes thin factors one by one: the compensation of a rounding error then costs rank * (rows + columns) more.

before:
graph example((%x,), {}) {
  %codes = weight "codes" #0000000000000000 : i8[32, 64]
  %scale = weight "scale" #0000000000000000 : f16[32, 1]
  %a = weight "a" #0000000000000000 : f32[32, 4]
  %b = weight "b" #0000000000000000 : f32[4, 64]
  %bias = weight "bias" #0000000000000000 : f32[32]
  %x = input : f32[2, 64]
  %q = graphc.dequantize_groups.default(%codes, %scale, None, 64) : f32[32, 64]
  %low = aten.mm.default(%a, %b) : f32[32, 64]
  %w = aten.add.Tensor(%q, %low) : f32[32, 64]
  %y = aten.linear.default(%x, %w, %bias) : f32[2, 32]
  return %y
}
after:
graph example((%x,), {}) {
  %codes = weight "codes" #0000000000000000 : i8[32, 64]
  %scale = weight "scale" #0000000000000000 : f16[32, 1]
  %a = weight "a" #0000000000000000 : f32[32, 4]
  %b = weight "b" #0000000000000000 : f32[4, 64]
  %bias = weight "bias" #0000000000000000 : f32[32]
  %x = input : f32[2, 64]
  %q = graphc.dequantize_groups.default(%codes, %scale, None, 64) : f32[32, 64]
  %low = aten.mm.default(%a, %b) : f32[32, 64]
  %y_1 = aten.linear.default(%x, %low, None) : f32[2, 32]
  %y_0 = aten.linear.default(%x, %q, %bias) : f32[2, 32]
  %y = aten.add.Tensor(%y_0, %y_1) : f32[2, 32]
  return %y
}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from graphc import formats
from graphc.expressions import Sum
from graphc.formats.binary import Binary
from graphc.formats.block_sparse import BlockSparse
from graphc.formats.linear import Linear
from graphc.formats.low_rank import LowRank
from graphc.formats.sparse import Sparse
from graphc.formats.vector import Vector
from graphc.graph import Graph, arguments
from graphc.pipeline import Pass, PassContext

aten = torch.ops.aten


@dataclass(frozen=True)
class SplitSums(Pass):
    """Linear layers whose weight is a sum of stored terms: integers in groups of whole fours of bytes, whole codewords,
    signs, two of four, blocks of 16 rows, thin factors. With any other term one dense product is the faster way."""

    fidelity = "exact"

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        result = graph.clone()
        changed = False
        for node in result.calls:
            if node.target is not aten.linear.default:
                continue
            x, weight, bias = arguments(node)
            terms = _terms(weight)
            if len(terms) < 2 or not all(map(_read_as_stored, terms)):
                continue
            with result.at(node):
                total: fx.Node | None = None
                # The first term comes last: its kernel, which reads the most, takes in the sum.
                for place, term in reversed(list(enumerate(terms))):
                    inside = None if place else bias
                    part = result.call(aten.linear.default, x, term, inside, name=f"{node.name}_{place}")
                    name = f"{node.name}_sum"
                    total = part if total is None else result.call(aten.add.Tensor, part, total, name=name)
            assert total is not None
            result.replace(node, total)
            changed = True
        if not changed:
            return graph
        result.drop_unused()
        return result


def _terms(weight: fx.Node) -> list[fx.Node]:
    """The terms of a stored sum; nothing where it is none."""
    found = formats.recognize(weight)
    if found is None or not isinstance(found.format, Sum):
        return []
    terms = [weight]
    while terms[0].target is aten.add.Tensor:
        terms[:1] = terms[0].args[:2]  # type: ignore[assignment]
    return terms


def _read_as_stored(term: fx.Node) -> bool:
    found = formats.recognize(term)
    form = None if found is None else found.format
    columns = int(term.meta["type"].shape[1])
    if isinstance(form, Linear):
        return isinstance(form.group, str) or form.group % 32 == 0
    if isinstance(form, Vector):
        return columns % form.d == 0
    if isinstance(form, BlockSparse):
        return form.height % 16 == 0
    return isinstance(form, Binary | LowRank | Sparse)
