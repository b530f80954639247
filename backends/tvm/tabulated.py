"""Recognizes int8 tables of partial products: what writes them, and what looks up in them.

    q, scale = quantize_dynamic(view(partial_products(x, codebook), [..., J * codewords]), pieces * codewords)
    y = gather_sum(view(dequantize_groups(q, scale, None, pieces * codewords), [..., J, codewords]), indices)

One kernel writes q and scale, one a gather_sum reads them: nothing between exists in memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from graphc.backends.tvm.operations import arguments, is_stored, name_of, shape_of
from graphc.graph import Graph

# Entries of a table that vector registers hold.
WIDTHS = (16, 32, 64, 128, 256)
# Sums of so many bytes fit 16 bits.
LONGEST = 257


@dataclass(frozen=True)
class QuantizedTables:
    """q: int8 [..., J * codewords]; scale: f32 [..., J / pieces]; `pieces` tables share a scale. `decoded`: the nodes
    between these and the gather_sum."""

    q: fx.Node
    scale: fx.Node
    pieces: int
    decoded: tuple[fx.Node, fx.Node]

    @staticmethod
    def of(node: fx.Node) -> QuantizedTables | None:
        """The tables of a gather_sum, where they are decoded from int8 and its indices are stored."""
        args = arguments(node)
        tables, codewords = args["tables"], shape_of(args["tables"])[-1]
        if name_of(tables) != "aten.view.default" or not is_stored(args["indices"]) or codewords not in WIDTHS:
            return None
        decoding = tables.args[0]
        if name_of(decoding) != "graphc.dequantize_groups.default":
            return None
        args = arguments(decoding)
        if args["zero_point"] is not None or args["group"] % codewords or args["scale"].op != "call_function":
            return None
        pieces = args["group"] // codewords
        shapes = shape_of(args["q"])[:-1], shape_of(args["scale"])[:-1], shape_of(tables)[:-2]
        if pieces > LONGEST or len(set(shapes)) != 1:
            return None
        return QuantizedTables(args["q"], args["scale"], pieces, (decoding, tables))


def decoded(graph: Graph) -> set[fx.Node]:
    """What only gather_sums with a kernel for the int8 form read: decodings of tables, unpackings of indices."""
    inside: set[fx.Node] = set()
    readers: set[fx.Node] = set()
    for node in graph.calls:
        if name_of(node) == "graphc.gather_sum.default" and (found := QuantizedTables.of(node)) is not None:
            inside.update(found.decoded)
            inside.update(used for used in [arguments(node)["indices"]] if used.op == "call_function")
            readers.add(node)
    return {
        node for node in inside if all(u in readers or (u in inside and set(u.users) <= readers) for u in node.users)
    }


def quantized_products(node: fx.Node) -> tuple[fx.Node, ...]:
    """partial_products, its view in one line, and the scale and the integers that quantize_dynamic makes of it, where
    `node` is those integers and nothing else reads what lies between; else nothing."""
    if name_of(node) != "graphc.quantize_dynamic.default#0":
        return ()
    quantized: fx.Node = node.args[0]  # type: ignore[assignment]
    flat: fx.Node = quantized.args[0]  # type: ignore[assignment]
    others = [user for user in quantized.users if user is not node]
    if name_of(flat) != "aten.view.default" or len(others) != 1 or set(flat.users) != {quantized}:
        return ()
    products: fx.Node = flat.args[0]  # type: ignore[assignment]
    if name_of(products) != "graphc.partial_products.default" or set(products.users) != {flat}:
        return ()
    return products, flat, others[0], node
