"""Put operators that one kernel can compute into numbered groups; nothing moves, the graph means the same.

A group is one anchor (anything with a kernel of its own) and the element-wise operators that follow it, or element-wise
operators alone. Only the last value of a group is used outside, so a group runs at once, at the place of its last node.

before:
graph example((%x, %s), {}) {
  %w = weight "w" #0000000000000000 : f32[4, 8]
  %x = input : f32[2, 8]
  %s = input : f32[2, 4]
  %y = aten.linear.default(%x, %w, None) : f32[2, 4]
  %h = aten.neg.default(%s) : f32[2, 4]
  %z = aten.add.Tensor(%y, %h) : f32[2, 4]
  %r = aten.relu.default(%z) : f32[2, 4]
  return %r
}
after:
graph example((%x, %s), {}) {
  %w = weight "w" #0000000000000000 : f32[4, 8]
  %x = input : f32[2, 8]
  %s = input : f32[2, 4]
  %y = aten.linear.default(%x, %w, None) : f32[2, 4] group=0
  %h = aten.neg.default(%s) : f32[2, 4] group=0
  %z = aten.add.Tensor(%y, %h) : f32[2, 4] group=0
  %r = aten.relu.default(%z) : f32[2, 4] group=0
  return %r
}
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx

from graphc.graph import Graph, is_item
from graphc.pipeline import Pass, PassContext
from graphc.tensor_type import TensorType

aten = torch.ops.aten

ELEMENTWISE = {
    torch.ops.graphc.quantize.default,
    torch.ops.graphc.dequantize.default,
    torch.ops.graphc.rescale.default,
    aten._to_copy.default,
    aten.prelu.default,
    aten.hardswish.default,
}

# Operators with a kernel of their own that element-wise operators may follow.
ANCHORS = {
    aten.convolution.default,
    aten.linear.default,
    aten.mm.default,
    aten.bmm.default,
    aten.matmul.default,
    aten.addmm.default,
    aten.baddbmm.default,
    aten.mean.dim,
    aten.sum.dim_IntList,
    aten.amax.default,
    aten.avg_pool2d.default,
    aten.max_pool2d.default,
    torch.ops.graphc.integer_convolution.default,
    torch.ops.graphc.integer_linear.default,
    torch.ops.graphc.integer_sum_pool2d.default,
    torch.ops.graphc.gather_sum.default,
}


@dataclass
class _Group:
    members: list[fx.Node] = field(default_factory=list)
    anchored: bool = False


@dataclass(frozen=True)
class FuseOperators(Pass):
    """Number the groups; `limit` bounds the operators of one."""

    limit: int = 32

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        result = graph.clone()
        stored = _stored_only(result)
        groups: dict[fx.Node, _Group] = {}
        for node in result.calls:
            node.meta["group"] = None
            if node in stored:
                continue
            if node.target in ANCHORS:
                groups[node] = _Group([node], anchored=True)
            elif is_elementwise(node):
                groups[node] = self._join(node, groups)
        numbers: dict[int, int] = {}
        for node in result.calls:
            group = groups.get(node)
            if group is not None and len(group.members) > 1:
                node.meta["group"] = numbers.setdefault(id(group), len(numbers))
        same = all(a.meta.get("group") == b.meta.get("group") for a, b in zip(graph, result, strict=True))
        return graph if same else result

    def _join(self, node: fx.Node, groups: dict[fx.Node, _Group]) -> _Group:
        """The group of an element-wise node: those of its inputs that nothing else reads, with at most one anchor."""
        group = _Group([node])
        # The input computed last comes first: an anchor that waits for others is the one to finish the sum.
        for source in sorted((s for s in node.all_input_nodes if s in groups), reverse=True):
            other = groups[source]
            mergeable = set(source.users) == {node} and _same_shape(source, node) and other is not group
            if not mergeable or (group.anchored and other.anchored):
                continue
            if len(group.members) + len(other.members) > self.limit:
                continue
            group.members = [*other.members, *group.members]
            group.anchored |= other.anchored
            for member in other.members:
                groups[member] = group
        return group


def is_elementwise(node: fx.Node) -> bool:
    """Whether each output element depends on one element of each input (broadcast included)."""
    if node.op != "call_function" or is_item(node) or not isinstance(node.meta["type"], TensorType):
        return False
    return node.target in ELEMENTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ())


def _same_shape(first: fx.Node, second: fx.Node) -> bool:
    same: bool = first.meta["type"].shape == second.meta["type"].shape
    return same


def _stored_only(graph: Graph) -> set[fx.Node]:
    """Nodes that depend on weights alone: computed once at load, never part of a group."""
    found: set[fx.Node] = set()
    for node in graph:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (node.op == "call_function" and inputs and found.issuperset(inputs)):
            found.add(node)
    return found
