"""What operators cost: multiply-accumulates."""

from __future__ import annotations

import math

import torch
from torch import fx

from graphc.graph import Graph
from graphc.tensor_type import Size, evaluate, symbol

aten = torch.ops.aten
_CONVOLUTIONS = (aten.convolution.default, torch.ops.graphc.integer_convolution.default)
_LINEARS = (aten.linear.default, torch.ops.graphc.integer_linear.default)
_PRODUCTS = (aten.mm.default, aten.bmm.default, aten.matmul.default)


def macs(graph: Graph, node: fx.Node) -> int:
    """Multiply-accumulates of a node, dynamic sizes at their minimum; 0 for all but layers, products and attention."""
    sizes = {symbol(name): bounds.minimum for name, bounds in graph.symbols.items()}

    def shape(value: object) -> list[int]:
        kinds: tuple[Size, ...] = value.meta["type"].shape  # type: ignore[attr-defined]
        return [evaluate(size, sizes) for size in kinds]

    if node.target in _CONVOLUTIONS:
        weight = shape(node.args[1])
        transposed = node.target is aten.convolution.default and bool(node.args[6])
        # Each element of the input (transposed) or of the output meets every tap of the channels in its group.
        elements = math.prod(shape(node.args[0] if transposed else node))
        return elements * math.prod(weight[1:])
    if node.target in _LINEARS:
        return math.prod(shape(node)) * shape(node.args[1])[-1]
    if node.target in _PRODUCTS:
        return math.prod(shape(node)) * shape(node.args[0])[-1]
    if node.target is aten.scaled_dot_product_attention.default:
        query, key, value = (shape(argument) for argument in node.args[:3])
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return 0
