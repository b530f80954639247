"""Let layers multiply in bfloat16: their weights and what they read are rounded to it, sums and all else stay float32.

A rounded value is stored as bfloat16 and widened where it is read, so every product is of two bfloat16 numbers, which
float32 holds exactly; a backend with dot products of bfloat16 computes the same sums in another order. Convolutions and
matrix products read widened operands; attention is torch's own on bfloat16, and an embedding's table is stored so.
Views and concatenations of such values move the 16 bits.

before:
graph example((%x,), {}) {
  %w = weight "w" #0000000000000000 : f32[4, 8]
  %x = input : f32[2, 2, 4]
  %v = aten.view.default(%x, [2, 8]) : f32[2, 8]
  %y = aten.linear.default(%v, %w, None) : f32[2, 4]
  return %y
}
after:
graph example((%x,), {}) {
  %x = input : f32[2, 2, 4]
  %x_bf16 = aten._to_copy.default(%x, dtype=bf16) : bf16[2, 2, 4]
  %w_bf16 = weight "w.bf16" #0000000000000000 : bf16[4, 8]
  %w = aten._to_copy.default(%w_bf16, dtype=f32) : f32[4, 8]
  %v_bf16 = aten.view.default(%x_bf16, [2, 8]) : bf16[2, 8]
  %v = aten._to_copy.default(%v_bf16, dtype=f32) : f32[2, 8]
  %y = aten.linear.default(%v, %w, None) : f32[2, 4]
  return %y
}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import fx

from graphc.graph import Graph, arguments
from graphc.pipeline import Pass, PassContext

aten = torch.ops.aten

# Operators that multiply, and which of their arguments they multiply.
PRODUCTS = {
    aten.convolution.default: (0, 1),
    aten.linear.default: (0, 1),
    aten.mm.default: (0, 1),
    aten.bmm.default: (0, 1),
    aten.matmul.default: (0, 1),
    aten.addmm.default: (1, 2),
    aten.baddbmm.default: (1, 2),
}
ATTENTION = aten.scaled_dot_product_attention.default
# Operators that compute in bfloat16 as they are: by moving elements, or by torch's definition.
MOVING = (
    aten.view.default,
    aten.permute.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.unsqueeze.default,
    aten.expand.default,
    aten.cat.default,
    aten.embedding.default,
    aten.repeat_interleave.self_int,
    aten.constant_pad_nd.default,
)


@dataclass(frozen=True)
class Bfloat16(Pass):
    """Convert all layers but those whose path matches `exclude` (shell patterns)."""

    fidelity = "lossy"
    exclude: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        layers = [node for node in graph.calls if self._takes(graph, node)]
        wanted = {node.name for node in (*_values(layers), *(node for node in layers if node.target is ATTENTION))}
        if not wanted:
            return graph
        result = graph.clone()
        narrow: dict[fx.Node, fx.Node] = {}
        for node in list(result.fx.nodes):
            if node.name in wanted:
                _convert(result, node, narrow)
        result.drop_unused()
        return result

    def _takes(self, graph: Graph, node: fx.Node) -> bool:
        if any(fnmatch(node.meta["path"], pattern) for pattern in self.exclude):
            return False
        if node.target is aten.embedding.default:
            table = graph.weight(node.args[0])
            return table is not None and table.dtype == torch.float32
        if node.target is ATTENTION:
            return _is_float(node)
        if node.target not in PRODUCTS:
            return False
        operands = [arguments(node)[place] for place in PRODUCTS[node.target]]
        return all(_is_float(item) and not _is_expression(item) for item in operands)


def _values(layers: Iterable[fx.Node]) -> list[fx.Node]:
    """The values to store in bfloat16: what the layers multiply, and what it was moved from."""
    found: dict[fx.Node, None] = {}
    waiting: list[Any] = []
    for layer in layers:
        if layer.target in PRODUCTS:
            waiting.extend(arguments(layer)[place] for place in PRODUCTS[layer.target])
        else:
            waiting.extend(arguments(layer)[:3] if layer.target is ATTENTION else [layer.args[0], layer])
    while waiting:
        value = waiting.pop()
        if value in found or not _is_float(value) or _narrow_source(value) is not None:
            continue
        found[value] = None
        if value.target in (*MOVING, aten.max_pool2d.default):
            waiting.extend(value.all_input_nodes)
    return list(found)


def _is_float(node: Any) -> bool:
    return isinstance(node, fx.Node) and bool(node.meta["type"].dtype == torch.float32)


def _is_expression(node: fx.Node) -> bool:
    """Whether the value is computed from weights alone: a compressed weight has its own arithmetic."""
    inputs = node.all_input_nodes
    return bool(inputs) and all(item.op == "get_attr" or _is_expression(item) for item in inputs)


def _narrow_source(node: fx.Node) -> fx.Node | None:
    """The bfloat16 value that a node widens."""
    if node.target is not aten._to_copy.default or not _is_float(node):
        return None
    source = node.all_input_nodes[0]
    return source if source.meta["type"].dtype == torch.bfloat16 else None


def _convert(graph: Graph, node: fx.Node, narrow: dict[fx.Node, fx.Node]) -> None:
    """Compute `node` in bfloat16 or round it, and let its readers read that widened. narrow: float32 -> bfloat16."""

    def operand(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return type(value)(operand(item) for item in value)
        return narrow.get(value, _narrow_source(value) or value) if _is_float(value) else value

    after = node.next
    while after.op == "placeholder":
        after = after.next
    with graph.at(after, path=node.meta["path"]):
        weight = graph.weight(node)
        if weight is not None:
            small = graph.add_weight(f"{node.target}.bf16", weight.to(torch.bfloat16))
        elif node.target in MOVING:
            small = graph.call(node.target, *operand(node.args), name=f"{node.name}_bf16", **node.kwargs)
        elif node.target is ATTENTION:
            args = (*(operand(value) for value in node.args[:3]), *node.args[3:])
            small = graph.call(node.target, *args, name=f"{node.name}_bf16", **node.kwargs)
        else:
            small = graph.call(aten._to_copy.default, node, dtype=torch.bfloat16, name=f"{node.name}_bf16")
        wide = graph.call(aten._to_copy.default, small, name=f"{node.name}_wide", dtype=torch.float32)
    narrow[wide] = small
    node.replace_all_uses_with(wide, delete_user_cb=lambda user: user is not small)
    if not node.users and node.op != "placeholder":
        graph.fx.erase_node(node)
        wide.name = node.name
