"""Stored weights that kernels read as they are: the decoding expressions that a layer's kernel takes in.

The nodes of such an expression are absorbed: they belong to the layer's group, and no dense weight exists anywhere. An
embedding decodes the rows that it looks up. All other decodings are computed once, at load.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from graphc import formats
from graphc.backends.tvm.evaluate import INDEX_FUNCTIONS
from graphc.backends.tvm.operations import arguments, name_of, operands, shape_of
from graphc.formats.binary import Binary
from graphc.formats.block_sparse import BlockSparse
from graphc.formats.linear import Linear
from graphc.formats.sparse import Sparse
from graphc.formats.vector import Vector
from graphc.graph import Graph

# Bits of a code -> the bit fields that it is stored as, the lowest first: each divides a byte.
FIELDS = {2: (2,), 3: (2, 1), 4: (4,), 8: (8,)}

# A kernel takes blocks of whole vectors of rows, on every instruction set.
BLOCK_ROWS = 16


def unit(bits: int) -> int:
    """Columns that fill the bytes of every field: neighbours in fours, as dot products take them."""
    return 32 // min(FIELDS[bits])


@dataclass(frozen=True)
class GroupedIntegers:
    """A matrix [rows, columns] = (codes - zero) * scale; `group` columns share scale and zero.

    codes: a leaf, uint8 packed below 8 bits. scale: f16 or f32. zero: uint8 or int8, None for nought.
    """

    codes: fx.Node
    bits: int
    scale: fx.Node
    zero: fx.Node | None
    group: int
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class TwoOfFour:
    """A matrix of which every four neighbours in a row have two that are kept. values: a leaf, f32, f16 or int8
    [rows, columns / 2]; scale: of each row, for int8; positions: uint8 of the values' shape."""

    values: fx.Node
    scale: fx.Node | None
    positions: fx.Node
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class KeptBlocks:
    """A matrix of blocks. values: a leaf, f32 or f16 [kept, height, width]; mask: uint8 [rows, columns], in blocks."""

    values: fx.Node
    mask: fx.Node
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Codewords:
    """A matrix of codewords. codes: a leaf; indices: what it is unpacked to, uint8 [rows, pieces]. Leaves as well:
    codebook, f16 or f32 [codewords, d] or, one for each run of pieces, [spaces, codewords, d]; scale: f32 [rows, 1] or
    None."""

    codes: fx.Node
    indices: fx.Node
    codebook: fx.Node
    scale: fx.Node | None
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class DynamicIntegers:
    """An activation `x` in int8, with a scale for each `group` neighbours."""

    x: fx.Node
    group: int
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True)
class CompressedLinear:
    """A linear layer as its kernel sees it. activation: None where it is taken as it comes."""

    weight: GroupedIntegers | TwoOfFour | KeptBlocks | Codewords
    activation: DynamicIntegers | None

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        return (*(self.activation.nodes if self.activation else ()), *self.weight.nodes)


def compressed(node: fx.Node) -> CompressedLinear | None:
    """What a kernel of this layer takes in; None where it reads a dense weight."""
    if name_of(node) != "aten.linear.default":
        return None
    args = arguments(node)
    weight = _weight(args["weight"])
    if weight is None:
        return None
    activation = _activation(args["input"], weight) if isinstance(weight, GroupedIntegers) else None
    return CompressedLinear(weight, activation)


def looked_up(node: fx.Node) -> tuple[fx.Node, ...]:
    """The decoding of an embedding's weight, where each element can be computed from its index alone."""
    if name_of(node) != "aten.embedding.default":
        return ()
    found: dict[fx.Node, None] = {}

    def visit(value: fx.Node) -> bool:
        if value.op == "get_attr":
            return True
        whole = value.op == "call_function" and name_of(value) in INDEX_FUNCTIONS and all(map(visit, operands(value)))
        found[value] = None
        return whole

    return tuple(found) if visit(arguments(node)["weight"]) else ()


def looked_up_parts(graph: Graph) -> frozenset[fx.Node]:
    """The leaves of all such decodings."""
    inside = (value for node in graph.calls for value in looked_up(node))
    return frozenset(leaf for value in inside for leaf in operands(value) if leaf.op == "get_attr")


def unpacking_code(codes: fx.Node) -> int:
    """About the bytes of code that reads these stored or unpacked codes one by one and packs them for a kernel at load:
    many where a code may lie in two bytes."""
    bits = int(arguments(codes)["bits"]) if name_of(codes) == "graphc.unpack.default" else 8
    return 1024 if 8 % bits == 0 else 8192


def absorbed(nodes: list[fx.Node]) -> tuple[fx.Node, ...]:
    """The decodings that the kernel of a group computes on the way."""
    return tuple(value for node in nodes if (found := compressed(node)) is not None for value in found.nodes)


def hidden(graph: Graph) -> set[fx.Node]:
    """The decodings that nobody needs beside the layers that absorb them."""
    layers = {node: looked_up(node) for node in graph.calls}
    layers |= {node: found.nodes for node in graph.calls if (found := compressed(node)) is not None}
    absorbable = {node for nodes in layers.values() for node in nodes}
    result: set[fx.Node] = set()
    for node in reversed(graph.calls):
        taken = [node in layers.get(user, ()) or user in result for user in node.users]
        if taken and all(taken) and node in absorbable:
            result.add(node)
    return result


def reason(nodes: tuple[fx.Node, ...]) -> str:
    """Why a layer of these nodes reads a weight that is decoded at load; empty where none does."""
    for value in (value for node in nodes for value in node.all_input_nodes if value not in nodes):
        source = value
        while name_of(source) == "aten.view.default":
            source = source.args[0]  # type: ignore[assignment]
        found = formats.recognize(source)
        if found is not None:
            return f"its weight ({found.format.label}) is decoded at load: no kernel of this layer reads it as stored"
    return ""


def _weight(node: fx.Node) -> GroupedIntegers | TwoOfFour | KeptBlocks | Codewords | None:
    found = formats.recognize(node)
    if found is None:
        return None
    if isinstance(found.format, Sparse):
        values, positions = node.args
        inside = [value for value in (positions, values, node) if value.op == "call_function"]  # type: ignore[union-attr]
        return TwoOfFour(found.parts["values"], found.parts.get("scale"), positions, tuple(inside))  # type: ignore[arg-type]
    if isinstance(found.format, BlockSparse):
        mask: fx.Node = node.args[1]  # type: ignore[assignment]
        whole = found.format.height % BLOCK_ROWS == 0
        return KeptBlocks(found.parts["values"], mask, (mask, node)) if whole else None
    if isinstance(found.format, Vector | Binary):
        return _codewords(node, found)
    if not isinstance(found.format, Linear):
        return None
    bits, columns, group = found.format.bits, int(shape_of(node)[-1]), int(arguments(node)["group"])
    # Integer sums over a row must fit 32 bits.
    if len(shape_of(node)) != 2 or columns > 1 << 16 or (group % unit(bits) and group != columns):
        return None
    q = arguments(node)["q"]
    nodes = (node,) if q.op == "get_attr" else (q, node)
    parts = found.parts
    return GroupedIntegers(parts["codes"], bits, parts["scale"], parts.get("zero_point"), group, nodes)


def _codewords(node: fx.Node, found: formats.Stored) -> Codewords | None:
    words: fx.Node = node.args[0] if "scale" in found.parts else node  # type: ignore[assignment]
    if name_of(words) != "graphc.lookup.default":  # part of a last piece
        return None
    indices: fx.Node = words.args[0]  # type: ignore[assignment]
    inside = dict.fromkeys(value for value in (indices, words, node) if value.op == "call_function")
    return Codewords(found.parts["codes"], indices, found.parts["codebook"], found.parts.get("scale"), tuple(inside))


def _activation(node: fx.Node, weight: GroupedIntegers) -> DynamicIntegers | None:
    if name_of(node) != "graphc.dequantize_groups.default":
        return None
    args = arguments(node)
    q, scale, group = args["q"], args["scale"], int(args["group"])
    names = ["graphc.quantize_dynamic.default#0", "graphc.quantize_dynamic.default#1"]
    if args["zero_point"] is not None or [name_of(q), name_of(scale)] != names or q.args[0] is not scale.args[0]:
        return None
    source = arguments(q)
    # One of the two groups must hold the other, and each whole steps of the packed weight.
    nested = weight.group % group == 0 or group % weight.group == 0
    whole = group % unit(weight.bits) == 0 or group == int(shape_of(node)[-1])
    if source["group"] != group or not nested or not whole:
        return None
    return DynamicIntegers(source["x"], group, (q, scale, node))
