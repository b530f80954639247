"""Multiply by vector-quantized weights through tables of partial products, held in int8.

    x @ (s * lookup(i, c))^T  =  s * gather_sum(partial_products(x, c), i)

Every piece of x meets every codeword once; a row of the weight then costs one look-up where it cost d multiply-adds.
Tables get a scale for each `pieces` pieces of x (or the next smaller divisor of their number), found when they are
built, so that their sums are small integers. Layers that read one value through one codebook share its tables.

before:
graph example((%x,), {}) {
  %w_codebook = weight "w.codebook" #0000000000000000 : f16[256, 4]
  %w_codes = weight "w.codes" #0000000000000000 : u8[32, 16]
  %w_scale = weight "w.scale" #0000000000000000 : f32[32, 1]
  %x = input : f32[1, 64]
  %w_decoded = graphc.lookup.default(%w_codes, %w_codebook) : f32[32, 64]
  %w = aten.mul.Tensor(%w_decoded, %w_scale) : f32[32, 64]
  %y = aten.linear.default(%x, %w, None) : f32[1, 32]
  return %y
}
after:
graph example((%x,), {}) {
  %w_codebook = weight "w.codebook" #0000000000000000 : f16[256, 4]
  %w_codes = weight "w.codes" #0000000000000000 : u8[32, 16]
  %x = input : f32[1, 64]
  %y_products = graphc.partial_products.default(%x, %w_codebook) : f32[1, 16, 256]
  %y_flat = aten.view.default(%y_products, [1, 4096]) : f32[1, 4096]
  %y_quantized = graphc.quantize_dynamic.default(%y_flat, 4096) : (i8[1, 4096], f32[1, 1])
  %y_int8 = getitem(%y_quantized, 0) : i8[1, 4096]
  %y_unit = getitem(%y_quantized, 1) : f32[1, 1]
  %y_decoded = graphc.dequantize_groups.default(%y_int8, %y_unit, None, 4096) : f32[1, 4096]
  %y_tables = aten.view.default(%y_decoded, [1, 16, 256]) : f32[1, 16, 256]
  %y_sum = graphc.gather_sum.default(%y_tables, %w_codes) : f32[1, 32]
  %w_scale_row = weight "w.scale.row" #0000000000000000 : f32[32]
  %y = aten.mul.Tensor(%y_sum, %w_scale_row) : f32[1, 32]
  return %y
}
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import torch
from torch import fx

from graphc.errors import PassError
from graphc.formats.vector import Vector
from graphc.graph import Graph, arguments
from graphc.pipeline import Pass, PassContext
from graphc.tensor_type import symbol
from graphc.text import digest

aten, graphc_ops = torch.ops.aten, torch.ops.graphc


@dataclass(frozen=True)
class Tabulate(Pass):
    """Rewrite linear layers of at most `rows` rows of input, but those whose path matches `exclude` (shell patterns).

    pieces: how many tables share a scale, at most 256: more would not sum exactly in 16 bits. Beyond some rows the
    tables no longer fit the caches, and decoding the weight once for all rows is faster. Codebooks of fewer than 16
    words are left: their tables are smaller than a vector.
    """

    fidelity = "lossy"
    rows: int = 8
    pieces: int = 32
    exclude: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        if not 1 <= self.pieces <= 256:
            raise PassError(f"tabulate: pieces={self.pieces} must be from 1 to 256")
        result = graph.clone()
        tables: dict[tuple[fx.Node, str], fx.Node] = {}
        changed = False
        for node in result.calls:
            if node.target is aten.linear.default and not any(fnmatch(node.meta["path"], p) for p in self.exclude):
                changed |= self._rewrite(result, node, tables)
        if not changed:
            return graph
        result.drop_unused()
        return result

    def _rewrite(self, graph: Graph, node: fx.Node, known: dict[tuple[fx.Node, str], fx.Node]) -> bool:
        x, weight, bias = arguments(node)
        found = Vector.recognize(weight)
        if found is None or not self._few(graph, x):
            return False
        words = weight.args[0] if "scale" in found.parts else weight
        if words.target is not graphc_ops.lookup.default:  # a last piece of which the layer reads a part
            return False
        codes, codebook = words.args
        if codebook.meta["type"].shape[-2] < 16:
            return False
        with graph.at(node):
            key = x, digest(graph.weights[str(codebook.target)])
            if key not in known:
                known[key] = self._tables(graph, x, codebook, node.name)
            total = graph.call(graphc_ops.gather_sum.default, known[key], codes, name=f"{node.name}_sum")
            if "scale" in found.parts:
                stored = str(found.parts["scale"].target)
                row = graph.add_weight(f"{stored}.row", graph.weights[stored].flatten())
                total = graph.call(aten.mul.Tensor, total, row, name=f"{node.name}_scaled")
            if bias is not None:
                total = graph.call(aten.add.Tensor, total, bias, name=f"{node.name}_biased")
        graph.replace(node, total)
        return True

    def _few(self, graph: Graph, x: fx.Node) -> bool:
        """Whether x is f32 [rows..., columns] of few rows, even where sizes are at their largest."""
        kind = x.meta["type"]
        largest = {symbol(name): known.maximum for name, known in graph.symbols.items()}
        count = math.prod(size if isinstance(size, int) else int(size.subs(largest)) for size in kind.shape[:-1])
        return kind.dtype == torch.float32 and len(kind.shape) > 1 and count <= self.rows

    def _tables(self, graph: Graph, x: fx.Node, codebook: fx.Node, name: str) -> fx.Node:
        """f32 [..., pieces of x, codewords], rounded to int8."""
        products = graph.call(graphc_ops.partial_products.default, x, codebook, name=f"{name}_products")
        *outer, pieces, codewords = products.meta["type"].shape
        *spaces, _, _ = codebook.meta["type"].shape  # tables of one codebook alone share a scale
        run = pieces // spaces[0] if spaces else pieces
        shared = max(size for size in range(1, self.pieces + 1) if run % size == 0)
        flat: Any = graph.call(aten.view.default, products, [*outer, pieces * codewords], name=f"{name}_flat")
        group = shared * codewords
        both = graph.call(graphc_ops.quantize_dynamic.default, flat, group, name=f"{name}_quantized")
        q, unit = (graph.call(operator.getitem, both, i, name=f"{name}_{n}") for i, n in enumerate(("int8", "unit")))
        decoded = graph.call(graphc_ops.dequantize_groups.default, q, unit, None, group, name=f"{name}_decoded")
        return graph.call(aten.view.default, decoded, [*outer, pieces, codewords], name=f"{name}_tables")
