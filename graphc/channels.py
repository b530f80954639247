"""Which channels of a graph belong together: those that can only be removed at once.

Each layer's outputs are channels of their own. Operators pass channels on (activations, pools, slices, concatenation),
or couple them (a residual sum couples both operands' channels one by one); what no rule knows, the graph's inputs and
its results fix them. The connected components of this relation are the units of structured pruning: the dependency
graph of Fang et al., "DepGraph: Towards Any Structural Pruning" (CVPR 2023), kept channel by channel, so that
concatenations, splits and zero-padded shortcuts need no special case. Attention, normalization over channels and views
that take channels apart fix what they read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import torch

from graphc.channel_relation import FIXED_KEY, Key, Relation
from graphc.channel_rules import take
from graphc.graph import Graph

LAYERS = (torch.ops.aten.convolution.default, torch.ops.aten.linear.default)
FIXED = -1  # the unit of all channels that must stay


@dataclass(frozen=True)
class Channels:
    """The dimension of a value that counts channels, and for each place along it the unit that it belongs to."""

    axis: int
    units: tuple[int, ...]


@dataclass(frozen=True)
class Coupling:
    """values: by node name. weights: by weight name and axis, as `Channels.units`. groups: units that go through the
    same values, such as all channels of one residual stage; each in ascending order, without the fixed."""

    values: Mapping[str, Channels]
    weights: Mapping[str, Mapping[int, tuple[int, ...]]]
    groups: tuple[tuple[int, ...], ...]


def couple(graph: Graph) -> Coupling:
    """Find the units of a graph. The same graph gives the same numbers."""
    work = Relation(graph)
    for node in graph:
        if node.op == "output":
            work.fix(node)
        elif node.op == "call_function":
            take(work, node)
    weights = work.agreed()
    number = _numbers(work)

    def units(keys: Sequence[Key]) -> tuple[int, ...]:
        return tuple(number[key] for key in keys)

    values = {node.name: Channels(axis, units(keys)) for node, (axis, keys) in work.labels.items()}
    touched: dict[int, list[str]] = defaultdict(list)
    for name, channels in values.items():
        for unit in sorted(set(channels.units) - {FIXED}):
            touched[unit].append(name)
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for unit in sorted(touched):
        groups[tuple(touched[unit])].append(unit)
    stored = {name: {axis: units(keys) for axis, keys in axes.items()} for name, axes in weights.items()}
    return Coupling(values, stored, tuple(map(tuple, groups.values())))


def _numbers(work: Relation) -> dict[Key, int]:
    """Components in the order in which their first channel arises."""
    number = dict.fromkeys(nx.node_connected_component(work.relation, FIXED_KEY), FIXED)
    count = 0
    for key in work.relation:
        if key not in number:
            number.update(dict.fromkeys(nx.node_connected_component(work.relation, key), count))
            count += 1
    return number
