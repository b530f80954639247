"""Quantize activations as they come (dynamically) where they meet weights that are stored as integers.

    x -> dequantize_groups(quantize_dynamic(x)): int8, a scale for each group, found from the group's values at run time

Needs no calibration. The sums of a layer are then integer products of int8 activations and small integer weights.

before:
graph example((%x,), {}) {
  %w = weight "w" #0000000000000000 : u8[4, 32]
  %s = weight "s" #0000000000000000 : f32[4, 1]
  %x = input : f32[2, 32]
  %v = graphc.dequantize_groups.default(%w, %s, None, 32) : f32[4, 32]
  %y = aten.linear.default(%x, %v, None) : f32[2, 4]
  return %y
}
after:
graph example((%x,), {}) {
  %w = weight "w" #0000000000000000 : u8[4, 32]
  %s = weight "s" #0000000000000000 : f32[4, 1]
  %x = input : f32[2, 32]
  %v = graphc.dequantize_groups.default(%w, %s, None, 32) : f32[4, 32]
  %quantize_dynamic_default = graphc.quantize_dynamic.default(%x, 32) : (i8[2, 32], f32[2, 1])
  %getitem = getitem(%quantize_dynamic_default, 0) : i8[2, 32]
  %getitem_1 = getitem(%quantize_dynamic_default, 1) : f32[2, 1]
  %x_decoded = graphc.dequantize_groups.default(%getitem, %getitem_1, None, 32) : f32[2, 32]
  %y = aten.linear.default(%x_decoded, %v, None) : f32[2, 4]
  return %y
}
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import fx

from graphc import formats
from graphc.errors import PassError
from graphc.formats.linear import Linear
from graphc.graph import Graph
from graphc.pipeline import Pass, PassContext

aten, graphc_ops = torch.ops.aten, torch.ops.graphc


@dataclass(frozen=True)
class QuantizeActivations(Pass):
    """`group`: neighbours along the last dimension that share a scale; layers that it does not divide stay."""

    fidelity = "lossy"
    group: int = 32
    exclude: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        if self.group < 1:
            raise PassError(f"quantize_activations: group={self.group} must be a number of values")
        result = graph.clone()
        known: dict[fx.Node, fx.Node] = {}  # what several layers read is quantized once
        for layer in result.calls:
            if not self._takes(layer):
                continue
            x, *rest = layer.args
            assert isinstance(x, fx.Node)  # `_takes` looked at its type
            if x not in known:
                with result.at(layer):
                    known[x] = _decoded(result, x, self.group)
            layer.args = (known[x], *rest)
        return result if known else graph

    def _takes(self, node: fx.Node) -> bool:
        if node.target is not aten.linear.default or any(fnmatch(node.meta["path"], p) for p in self.exclude):
            return False
        x, weight = node.all_input_nodes[:2]
        stored = formats.recognize(weight)
        kind = x.meta["type"]
        return (
            stored is not None
            and isinstance(stored.format, Linear)
            and kind.dtype == torch.float32
            and kind.shape[-1] % self.group == 0
            and x.target is not graphc_ops.dequantize_groups.default
        )


def _decoded(graph: Graph, x: fx.Node, group: int) -> fx.Node:
    both = graph.call(graphc_ops.quantize_dynamic.default, x, group)
    q, scale = (graph.call(operator.getitem, both, part) for part in range(2))
    return graph.call(graphc_ops.dequantize_groups.default, q, scale, None, group, name=f"{x.name}_decoded")
