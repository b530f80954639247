"""The layers and embeddings that one choice of format is made for."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from graphc.graph import Graph
from graphc.passes.compress import READERS, takes, weight_name
from graphc.passes.fuse_operators import FuseOperators
from graphc.pipeline import PassContext


@dataclass(frozen=True)
class Item:
    """Layers (the user's paths) and the f32 weights that they read; `name` is the first path.

    kind: what is computed, from values of which types; items that are alike in it share their kernels in a format.
    """

    layers: tuple[str, ...]
    weights: tuple[str, ...]
    kind: str = ""

    @property
    def name(self) -> str:
        return self.layers[0]


def items(graph: Graph) -> tuple[Item, ...]:
    """All items, in the graph's order: layers of one path, of one weight, or of one fused group belong together.

    A weight that is read in another way too would be stored twice: what reads it stays as it is.
    """
    layers = [node for node in graph.calls if takes(graph, node)]
    fused = FuseOperators().run(graph, PassContext())
    groups = {node.name: node.meta["group"] for node in fused}
    parents = {node: node for node in layers}

    def root(node: fx.Node) -> fx.Node:
        while parents[node] is not node:
            node = parents[node]
        return node

    first: dict[tuple[str, object], fx.Node] = {}
    for node in layers:
        keys: list[tuple[str, object]] = [("weight", weight_name(node)), ("path", node.meta["path"])]
        if groups.get(node.name) is not None:
            keys.append(("group", groups[node.name]))
        for key in keys:
            parents[root(node)] = root(first.setdefault(key, node))
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in layers:
        members.setdefault(root(node), []).append(node)
    elsewhere = {
        str(used.target)
        for node in graph
        for used in node.all_input_nodes
        if used.op == "get_attr" and (node not in parents or node.args[READERS[node.target]] is not used)
    }
    return tuple(
        Item(
            tuple(dict.fromkeys(node.meta["path"] for node in nodes)),
            tuple(dict.fromkeys(weight_name(node) for node in nodes)),
            _kind(fused, {node.name for node in nodes}),
        )
        for nodes in members.values()
        if not elsewhere.intersection(map(weight_name, nodes))
    )


def _kind(fused: Graph, layers: set[str]) -> str:
    """The operators of the layers and of all that is fused with them, with their arguments' types."""
    numbers = {node.meta["group"] for node in fused if node.name in layers} - {None}
    members = [node for node in fused.calls if node.name in layers or node.meta["group"] in numbers]
    given = [fx.map_arg((node.args, node.kwargs), lambda used: used.meta["type"]) for node in members]
    return "; ".join(f"{node.target}{arguments}" for node, arguments in zip(members, given, strict=True))
