"""Compute at compile time what depends on weights alone.

A result is stored only where it takes no more room than the weights it is made of (or 64 KiB): a broadcast is not
blown up, nor what is computed from it.
What decodes a compressed weight (graphc.dequantize and its kin) stays: the weight must remain small.

before:
graph example((%x,), {}) {
  %x = input : f32[2]
  %w = weight "w" #0000000000000000 : f32[2]
  %e = aten.exp.default(%w) : f32[2]
  %y = aten.mul.Tensor(%x, %e) : f32[2]
  return %y
}
after:
graph example((%x,), {}) {
  %x = input : f32[2]
  %e = weight "e" #0000000000000000 : f32[2]
  %y = aten.mul.Tensor(%x, %e) : f32[2]
  return %y
}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from graphc.graph import Graph, concrete
from graphc.operators import DECODINGS
from graphc.pipeline import Pass, PassContext

_SMALL = 64 * 1024  # bytes that a folded constant may take whatever it is made of


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace operators on weights by their results."""

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        result = graph.clone()
        values: dict[fx.Node, Any] = {}
        sources: dict[fx.Node, frozenset[str]] = {}  # the weights that a value is made of
        for node in list(result.fx.nodes):
            if node.op == "get_attr":
                values[node] = result.weights[str(node.target)]
                sources[node] = frozenset([str(node.target)])
            elif node.op == "call_function" and _foldable(node, values):
                args, kwargs = concrete((node.args, dict(node.kwargs)), values.__getitem__, {})
                values[node] = node.target(*args, **kwargs)
                sources[node] = frozenset().union(*(sources[used] for used in node.all_input_nodes))
        folded = [
            node
            for node, value in values.items()
            if node.op == "call_function"
            and isinstance(value, torch.Tensor)
            and value.nbytes <= max(_SMALL, sum(result.weights[name].nbytes for name in sources[node]))
        ]
        for node in folded:
            with result.at(node):
                weight = result.add_weight(
                    node.name, values[node].detach().clone(memory_format=torch.contiguous_format)
                )
            name = node.name
            result.replace(node, weight)
            weight.name = name
        if not folded:
            return graph
        result.drop_unused()
        return result


def _foldable(node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    if any(used not in values for used in node.all_input_nodes) or _symbolic((node.args, dict(node.kwargs))):
        return False
    tags = getattr(node.target, "tags", ())
    return node.target not in DECODINGS and torch.Tag.nondeterministic_seeded not in tags


def _symbolic(argument: Any) -> bool:
    if isinstance(argument, tuple | list):
        return any(_symbolic(item) for item in argument)
    if isinstance(argument, dict):
        return any(_symbolic(item) for item in argument.values())
    return isinstance(argument, sympy.Expr)
