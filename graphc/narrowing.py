"""Take channels out of a graph: weights sliced, sizes in arguments adapted, types inferred anew."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx

from graphc.channel_rules import SPLITS, pad_of
from graphc.channels import Channels, Coupling
from graphc.cost import macs
from graphc.graph import Graph, arguments
from graphc.operators.inference import infer
from graphc.tensor_type import TensorType

aten = torch.ops.aten


def narrow(graph: Graph, coupling: Coupling, gone: Collection[int]) -> Graph:
    """The graph without the channels of the units `gone`; `coupling` is the graph's own (`channels.couple`).

    What remains keeps its order, its values and its names. The results' types stay, because results fix their channels.
    """
    result = graph.clone()
    for name, axes in coupling.weights.items():
        for axis, units in axes.items():
            places = [place for place, unit in enumerate(units) if unit not in gone]
            if len(places) < len(units):
                result.weights[name] = result.weights[name].index_select(axis, torch.tensor(places))
    for node in result:
        if node.op == "get_attr":
            node.meta["type"] = TensorType.of(result.weights[str(node.target)])
        elif node.op == "call_function":
            if node.name in coupling.values:
                _adapt(node, coupling.values, gone)
            node.meta["type"] = infer(node, result.symbols)
    return result


class RemainingMacs:
    """Multiply-accumulates of a graph that keeps a share of each group of channels, dynamic sizes at their minimum.

    A layer's cost is in proportion to each axis of its weight that counts channels.
    """

    def __init__(self, graph: Graph, coupling: Coupling) -> None:
        places = {unit: number for number, group in enumerate(coupling.groups) for unit in group}
        rows = [[0.0] * len(coupling.groups) + [1.0]]  # what share of an axis each group holds, the fixed ones last
        factors: list[list[int]] = []
        costs: list[int] = []
        for node in graph.calls:
            cost = macs(graph, node)
            weight = node.args[1] if cost else None
            stored = isinstance(weight, fx.Node) and weight.op == "get_attr"
            axes = coupling.weights.get(str(weight.target), {}) if stored else {}  # type: ignore[union-attr]
            if cost:
                costs.append(cost)
                factors.append([*range(len(rows), len(rows) + len(axes)), 0, 0][:2])
            for units in axes.values():
                rows.append([0.0] * (len(coupling.groups) + 1))
                for unit in units:
                    rows[-1][places.get(unit, -1)] += 1 / len(units)
        self._rows = torch.tensor(rows, dtype=torch.float64)
        self._costs = torch.tensor(costs, dtype=torch.float64)
        self._factors = torch.tensor(factors, dtype=torch.int64).reshape(-1, 2)

    def __call__(self, shares: torch.Tensor) -> torch.Tensor:
        """float64 [..., groups], what is left of each group -> float64 [...]"""
        left = shares @ self._rows[:, :-1].T + self._rows[:, -1]
        return (self._costs * left[..., self._factors].prod(-1)).sum(-1)


def _adapt(node: fx.Node, values: Mapping[str, Channels], gone: Collection[int]) -> None:
    """Write the numbers of channels that remain into the arguments of an operator that has them there."""
    axis, kept = values[node.name].axis, [unit not in gone for unit in values[node.name].units]
    source = values.get(node.args[0].name) if isinstance(node.args[0], fx.Node) else None
    before = [unit not in gone for unit in source.units] if source else []
    if all(kept) and all(before):
        return
    new: Any
    if node.target is aten.convolution.default:
        transposed, _, groups = node.args[6:]
        if groups == len(before) and not transposed:  # depthwise
            node.update_arg(8, sum(before))
    elif node.target in (aten.view.default, aten.expand.default):
        new = list(node.args[1])  # type: ignore[arg-type]
        new[axis] = new[axis] if new[axis] == -1 else sum(kept)
        node.update_arg(1, new)
    elif node.target is aten.slice.Tensor:
        _, dim, start, end, _ = arguments(node)
        if dim % len(node.meta["type"].shape) == axis:
            start, end, _ = slice(start, end).indices(len(before))
            node.args = (node.args[0], axis, sum(before[:start]), sum(before[:end]))
    elif node.target is aten.constant_pad_nd.default:
        new = list(node.args[1])  # type: ignore[arg-type]
        rank = len(node.meta["type"].shape)
        first, last = pad_of(new, rank, axis)
        if first or last:
            place = 2 * (rank - 1 - axis)
            new[place : place + 2] = [sum(kept[:first]), sum(kept[len(kept) - last :])]
            node.update_arg(1, new)
    elif node.target in SPLITS and arguments(node)[2] % len(node.meta["type"][0].shape) == axis:
        sizes = [kind.shape[axis] for kind in node.meta["type"]]
        ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
        node.target = aten.split_with_sizes.default
        node.args = (node.args[0], [sum(kept[end - size : end]) for size, end in zip(sizes, ends, strict=True)], axis)
