"""The relation between channels: which must stay or go together, as the rules of graphc.channel_rules build it up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
from torch import fx

from graphc.graph import Graph

Key = tuple[str, int]  # one channel where it arises: the node's name and the place
FIXED_KEY: Key = ("", 0)
Labels = tuple[int, tuple[Key, ...]]  # the axis, and the key of each place along it


class Relation:
    """relation: which channels go together, as edges between keys. labels: axis and keys of each value that has
    channels. uses: by weight and user, the keys along the axes of the weight."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.relation = nx.Graph()
        self.relation.add_node(FIXED_KEY)
        self.labels: dict[fx.Node, Labels] = {}
        self.uses: dict[str, dict[fx.Node, dict[int, tuple[Key, ...]]]] = defaultdict(dict)

    def fresh(self, node: fx.Node, count: int) -> tuple[Key, ...]:
        keys = tuple((node.name, place) for place in range(count))
        self.relation.add_nodes_from(keys)
        return keys

    def couple(self, one: Sequence[Key], other: Sequence[Key]) -> None:
        self.relation.add_edges_from(zip(one, other, strict=True))

    def fix(self, node: fx.Node) -> None:
        """All channels that a node reads must stay."""
        for used in node.all_input_nodes:
            self.along(used, None)

    def along(self, value: fx.Node, axis: int | None) -> tuple[Key, ...]:
        """The keys along one axis; where the value's channels lie along another one they must stay."""
        own = self.labels.get(value)
        if own is not None and own[0] == axis:
            return own[1]
        if own is not None:
            self.couple(own[1], [FIXED_KEY] * len(own[1]))
        size = None if axis is None else shape_of(value)[axis]
        return (FIXED_KEY,) * size if isinstance(size, int) else ()

    def stored(self, weight: Any, user: fx.Node, axes: Mapping[int, tuple[Key, ...]]) -> None:
        """A use of a weight whose places along these axes are channels; one that is computed fixes them."""
        if not isinstance(weight, fx.Node):
            return
        if weight.op == "get_attr" and user not in self.uses[str(weight.target)]:
            self.uses[str(weight.target)][user] = dict(axes)
            return
        self.along(weight, None)
        for keys in axes.values():
            self.couple(keys, [FIXED_KEY] * len(keys))

    def agreed(self) -> dict[str, dict[int, tuple[Key, ...]]]:
        """Each weight's axes. All users see the same channels, so theirs are coupled; one without any fixes them."""
        users: dict[str, set[fx.Node]] = defaultdict(set)
        for node in self.graph:
            if node.op == "get_attr":
                users[str(node.target)].update(node.users)
        for name, uses in self.uses.items():
            for axis in sorted({axis for axes in uses.values() for axis in axes}):
                (first, *others) = [axes.get(axis) for axes in uses.values()] + [None] * (len(users[name]) - len(uses))
                for other in others:
                    known = first or other or ()
                    self.couple(known, other if first and other else [FIXED_KEY] * len(known))
        return {name: next(iter(uses.values())) for name, uses in self.uses.items()}


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    kind = node.meta["type"]
    return (kind[0] if isinstance(kind, tuple) else kind).shape  # type: ignore[no-any-return]
