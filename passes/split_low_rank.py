"""Multiply by the factors of a low-rank weight one after the other, where that takes fewer multiplications.

    x @ (A @ B)^T + b  =  (x @ B^T) @ A^T + b

Each factor is then the weight of a layer of its own, which further passes may compress or convert.

before:
graph example((%x,), {}) {
  %a = weight "a" #0000000000000000 : f32[32, 4]
  %b = weight "b" #0000000000000000 : f32[4, 24]
  %bias = weight "bias" #0000000000000000 : f32[32]
  %x = input : f32[2, 24]
  %w = aten.mm.default(%a, %b) : f32[32, 24]
  %y = aten.linear.default(%x, %w, %bias) : f32[2, 32]
  return %y
}
after:
graph example((%x,), {}) {
  %a = weight "a" #0000000000000000 : f32[32, 4]
  %b = weight "b" #0000000000000000 : f32[4, 24]
  %bias = weight "bias" #0000000000000000 : f32[32]
  %x = input : f32[2, 24]
  %y_low = aten.linear.default(%x, %b, None) : f32[2, 4]
  %y = aten.linear.default(%y_low, %a, %bias) : f32[2, 32]
  return %y
}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from graphc.graph import Graph, arguments
from graphc.pipeline import Pass, PassContext

aten = torch.ops.aten


@dataclass(frozen=True)
class SplitLowRank(Pass):
    """Linear layers whose weight is a product of two stored (perhaps compressed) matrices, with fewer elements."""

    fidelity = "exact"

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        result = graph.clone()
        stored = _weights_only(result)
        changed = False
        for node in result.calls:
            if node.target is aten.linear.default and _factored(node.args[1], stored):
                x, weight, bias = arguments(node)
                left, right = weight.args
                with result.at(node):
                    low = result.call(aten.linear.default, x, right, None, name=f"{node.name}_low")
                node.args = (low, left, bias)
                changed = True
        if not changed:
            return graph
        result.drop_unused()
        return result


def _weights_only(graph: Graph) -> set[fx.Node]:
    known: set[fx.Node] = set()
    for node in graph:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (node.op == "call_function" and inputs and known.issuperset(inputs)):
            known.add(node)
    return known


def _factored(weight: object, stored: set[fx.Node]) -> bool:
    if not isinstance(weight, fx.Node) or weight not in stored or weight.target is not aten.mm.default:
        return False
    rows, columns = weight.meta["type"].shape
    rank = weight.args[0].meta["type"].shape[1]  # type: ignore[union-attr]
    return bool(rank * (rows + columns) < rows * columns)
