"""Inputs to try a graph with where the user gave none."""

from __future__ import annotations

import torch

from graphc.graph import Graph
from graphc.tensor_type import TensorType, evaluate, symbol


def random_inputs(graph: Graph, seed: int = 0) -> list[torch.Tensor]:
    """Flat random inputs of the graph's types, dynamic sizes at their minimum (but 2 where that is allowed).

    Floats are standard normal; integers are 0 or 1, which any vocabulary and any index has.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = {symbol(name): min(max(bounds.minimum, 2), bounds.maximum) for name, bounds in graph.symbols.items()}
    leaves = []
    for node in graph.placeholders:
        kind: TensorType = node.meta["type"]
        shape = [evaluate(size, sizes) for size in kind.shape]
        if kind.dtype.is_floating_point:
            leaves.append(torch.randn(shape, generator=generator).to(kind.dtype))
        else:
            leaves.append(torch.randint(0, 2, shape, generator=generator).to(kind.dtype))
    return leaves
