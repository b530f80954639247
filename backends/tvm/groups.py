"""Fused groups: the nodes that become one kernel.

A group is at most one anchor (an operator with its own loop nest: convolution, reduction, ...), index functions that
feed it, and element-wise operators of the anchor's shape behind it. It has one result. Nodes that `fuse_operators`
put together share meta["group"]; what does not fit this picture is lowered node by node.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from graphc.backends.tvm import (
    index_functions,  # noqa: F401  (fills the tables)
    tabulated,
)
from graphc.backends.tvm.evaluate import INDEX_FUNCTIONS
from graphc.backends.tvm.index_functions.views import VIEWS
from graphc.backends.tvm.operations import name_of, operands, shape_of
from graphc.backends.tvm.pointwise import POINTWISE
from graphc.backends.tvm.weight_formats import absorbed, hidden, looked_up
from graphc.graph import Graph, is_item


@dataclass(frozen=True)
class Group:
    """Nodes in topological order; the last one is the result. `at_load`: depends on weights only.

    `also`: further results, written by the same kernel.
    absorbed: decodings of weights and activations that the anchor's kernel computes on the way (weight_formats); other
    groups may absorb the same.
    """

    nodes: tuple[fx.Node, ...]
    at_load: bool = False
    also: tuple[fx.Node, ...] = ()
    absorbed: tuple[fx.Node, ...] = ()

    @property
    def output(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def anchor(self) -> fx.Node | None:
        return next((node for node in self.nodes if name_of(node) not in INDEX_FUNCTIONS), None)

    @property
    def core(self) -> fx.Node:
        """The anchor, of a group that a template was chosen for by it."""
        if self.anchor is None:
            raise ValueError(f"a group without an anchor: {self.nodes}")
        return self.anchor

    @property
    def inputs(self) -> list[fx.Node]:
        """Values from outside, in the order of first use."""
        inside = {*self.absorbed, *self.nodes}
        found = [value for node in (*self.absorbed, *self.nodes) for value in operands(node) if value not in inside]
        return list(dict.fromkeys(found))

    @property
    def is_pointwise(self) -> bool:
        """Whether every node only broadcasts: result index in, the same index of each operand out."""
        return all(name_of(node) in POINTWISE for node in self.nodes)

    @property
    def path(self) -> str:
        """The user's layer: the anchor's, or the result's."""
        return str((self.anchor or self.output).meta.get("path", ""))


def operators(graph: Graph) -> list[fx.Node]:
    """The nodes that compute one tensor; an operator with several results appears as its getitems."""
    return [node for node in graph.calls if not isinstance(node.meta["type"], tuple)]


def weights_only(graph: Graph) -> set[fx.Node]:
    """Operators that depend on nothing but weights, and on no dynamic size: computed once, at load.

    A result of the graph is none of them: outputs exist during a run only.
    """
    known: set[fx.Node] = set()
    results = set(graph.output.args[0])  # type: ignore[arg-type]
    for node in graph:
        if node.op == "get_attr":
            known.add(node)
        elif node.op == "call_function" and node not in results:
            kinds = node.meta["type"]
            fixed = all(
                isinstance(s, int) for kind in (kinds if isinstance(kinds, tuple) else [kinds]) for s in kind.shape
            )
            if fixed and all(value in known for value in node.all_input_nodes):
                known.add(node)
    return known


def partition(graph: Graph) -> list[Group]:
    """The groups of a graph, in an order in which they can run."""
    at_load = weights_only(graph)
    bags: dict[object, list[fx.Node]] = {}
    tables = [chain for node in graph.calls if (chain := tabulated.quantized_products(node))]
    elsewhere = {node for chain in tables for node in chain} | tabulated.decoded(graph) | hidden(graph)
    for node in operators(graph):
        if node in elsewhere:
            continue
        number = node.meta.get("group")
        source = node.args[0] if is_item(node) else node
        if number is None and source is not node:
            number = source.meta.get("group")  # type: ignore[union-attr]
        bags.setdefault(node if number is None or node in at_load else number, []).append(node)
    results = set(graph.output.args[0])  # type: ignore[arg-type]
    split = [group for bag in bags.values() for group in _split(bag, results)]
    split = [[*(decoding for node in nodes for decoding in looked_up(node)), *nodes] for nodes in split]
    groups = [Group(tuple(nodes), nodes[-1] in at_load, absorbed=absorbed(nodes)) for nodes in split]
    groups += [Group(chain, chain[-1] in at_load, also=chain[-2:-1]) for chain in tables]
    order = {node: position for position, node in enumerate(graph)}
    groups.sort(key=lambda group: order[group.output])
    return groups


def _split(nodes: list[fx.Node], results: set[fx.Node]) -> list[list[fx.Node]]:
    """A bag of nodes as usable groups: views at its border stand alone, where they may cost nothing."""
    inside = list(nodes)
    alone: list[list[fx.Node]] = []
    changed = len(inside) > 1
    while changed:
        changed = False
        for node in inside:
            if name_of(node) not in VIEWS:
                continue
            leaf = not any(value in inside for value in operands(node))
            root = not any(user in inside for user in node.users)
            if leaf or root:
                inside.remove(node)
                alone.append([node])
                changed = True
                break
    if len(inside) > 1 and not _usable(inside, results):
        return [*alone, *[[node] for node in inside]]
    return [*alone, inside] if inside else alone


def _usable(nodes: list[fx.Node], results: set[fx.Node]) -> bool:
    escaping = [node for node in nodes if node in results or any(user not in nodes for user in node.users)]
    anchors = [node for node in nodes if name_of(node) not in INDEX_FUNCTIONS]
    if escaping != [nodes[-1]] or len(anchors) > 1:
        return False
    behind = {anchors[0]} if anchors else set()
    for node in nodes:
        if any(value in behind for value in operands(node)):
            if name_of(node) not in POINTWISE or shape_of(node) != shape_of(anchors[0]):
                return False
            behind.add(node)
    return not anchors or nodes[-1] in behind
