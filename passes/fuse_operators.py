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
    aten.layer_norm.default,
    aten.softmax.int,
    aten.scaled_dot_product_attention.default,
}
# Anchors that read their operands widened, and which of them.
WIDENED = {
    aten.convolution.default: slice(0, 1),
    aten.linear.default: slice(0, 1),
    aten.mm.default: slice(0, 2),
    aten.bmm.default: slice(0, 2),
    aten.matmul.default: slice(0, 2),
    aten.max_pool2d.default: slice(0, 1),
    aten.avg_pool2d.default: slice(0, 1),
    aten.mean.dim: slice(0, 1),
    aten.layer_norm.default: slice(0, 1),
    aten.softmax.int: slice(0, 1),
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
        _widen_for_each_reader(result)
        stored = _stored_only(result)
        groups: dict[fx.Node, _Group] = {}
        for node in result.calls:
            node.meta["group"] = None
            if node in stored:
                continue
            if node.target in ANCHORS:
                groups[node] = _Group([node], anchored=True)
                for source in _widened_operands(node):
                    groups[node].members[:0] = [source]
                    groups[source] = groups[node]
            elif is_widening(node):
                groups[node] = _Group([node])
            elif is_elementwise(node):
                groups[node] = self._join(node, groups)
        numbers: dict[int, int] = {}
        for node in result.calls:
            group = groups.get(node)
            if group is not None and len(group.members) > 1:
                node.meta["group"] = numbers.setdefault(id(group), len(numbers))
        same = len(list(graph)) == len(list(result)) and all(
            a.meta.get("group") == b.meta.get("group") for a, b in zip(graph, result, strict=True)
        )
        return graph if same else result

    def _join(self, node: fx.Node, groups: dict[fx.Node, _Group]) -> _Group:
        """The group of an element-wise node: those of its inputs that nothing else reads, with at most one anchor."""
        group = _Group([node])
        # The input computed last comes first: an anchor that waits for others is the one to finish the sum.
        widened = [source for source in node.all_input_nodes if is_widening(source)]
        sources = [*node.all_input_nodes, *(source.all_input_nodes[0] for source in widened)]
        for source in sorted((s for s in sources if s in groups), reverse=True):
            other = groups[source]
            mergeable = set(source.users) <= {node, *widened} and _same_shape(source, node) and other is not group
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


def is_widening(node: fx.Node) -> bool:
    """Whether the node converts bfloat16 to float32: its reader does so as it reads."""
    if node.target is not aten._to_copy.default or node.meta["type"].dtype != torch.float32:
        return False
    narrow: bool = node.all_input_nodes[0].meta["type"].dtype == torch.bfloat16
    return narrow


def _widen_for_each_reader(graph: Graph) -> None:
    """Give every reader of a widened value a conversion of its own, so that none is stored widened."""
    for node in graph.calls:
        if is_widening(node):
            for user in list(node.users)[1:]:
                with graph.at(node):
                    copy = graph.call(node.target, node.args[0], dtype=torch.float32)
                user.replace_input_with(node, copy)


def _widened_operands(node: fx.Node) -> list[fx.Node]:
    """The conversions that an anchor makes as it reads: of all operands of a product, or of the first one alone."""
    places = WIDENED.get(node.target, slice(0))  # type: ignore[call-overload]
    operands: list[fx.Node] = list(node.args)[places]
    found = [item for item in operands if is_widening(item)]
    return found if len(found) == len(operands) else [item for item in found if item is node.args[0]]


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
