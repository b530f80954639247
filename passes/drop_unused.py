"""Drop operators and weights that no result depends on. Inputs stay: they are the model's signature.

before:
graph example((%x,), {}) {
  %x = input : f32[4]
  %unused = aten.relu.default(%x) : f32[4]
  %y = aten.neg.default(%x) : f32[4]
  return %y
}
after:
graph example((%x,), {}) {
  %x = input : f32[4]
  %y = aten.neg.default(%x) : f32[4]
  return %y
}
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.graph import Graph
from graphc.pipeline import Pass, PassContext


@dataclass(frozen=True)
class DropUnused(Pass):
    """Remove what no result depends on."""

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        result = graph.clone()
        return result if result.drop_unused() else graph
