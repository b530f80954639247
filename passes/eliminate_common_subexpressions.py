"""Compute equal things once: the same operator on the same arguments, and weights with the same contents.

before:
graph example((%x,), {}) {
  %x = input : f32[4]
  %a = aten.sigmoid.default(%x) : f32[4]
  %b = aten.sigmoid.default(%x) : f32[4]
  %y = aten.mul.Tensor(%a, %b) : f32[4]
  return %y
}
after:
graph example((%x,), {}) {
  %x = input : f32[4]
  %a = aten.sigmoid.default(%x) : f32[4]
  %y = aten.mul.Tensor(%a, %a) : f32[4]
  return %y
}
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from graphc.graph import Graph
from graphc.pipeline import Pass, PassContext
from graphc.text import digest


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Merge equal operators and equal weights; random operators are never equal."""

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        result = graph.clone()
        known: dict[Hashable, fx.Node] = {}
        changed = False
        for node in list(result.fx.nodes):
            if node.op == "get_attr":
                key: Hashable = digest(result.weights[str(node.target)])
            elif node.op == "call_function" and torch.Tag.nondeterministic_seeded not in getattr(
                node.target, "tags", ()
            ):
                # A fused group keeps its own: one value alone may be seen outside of it.
                key = (node.target, _key(node.args), _key(dict(node.kwargs)), node.meta.get("group"))
            else:
                continue
            earlier = known.setdefault(key, node)
            if earlier is not node:
                node.replace_all_uses_with(earlier)
                result.fx.erase_node(node)
                changed = True
        if not changed:
            return graph
        result.drop_unused()
        return result


def _key(argument: Any) -> Hashable:
    """Arguments as a key: 1, 1.0 and True differ, as do 0.0 and -0.0."""
    if isinstance(argument, tuple | list):
        return tuple(_key(item) for item in argument)
    if isinstance(argument, dict):
        return tuple(sorted((name, _key(item)) for name, item in argument.items()))
    if isinstance(argument, fx.Node):
        return argument
    return (type(argument), repr(argument))
