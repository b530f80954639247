"""What layers of the zoo's networks lose in a way of storing them, on data that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

import graphc
from graphc.calibration import batches
from graphc.formats import Format
from graphc.graph import Graph
from graphc.moments import loss, second_moments
from graphc.passes.quantize import LAYERS
from graphc.pipeline import CLEAN, PassContext, Pipeline
from graphc.progress import Progress
from graphc.tools.zoo.catalog import MODELS, Entry

Figures = dict[str, Any]
Shape = tuple[int, int]
LEAST = 64  # rows and columns of a layer


@dataclass(frozen=True)
class Layer:
    """weight: f32 [rows, columns]. given, judged: moments of its inputs on either half of the data."""

    name: str
    weight: Tensor
    given: Tensor
    judged: Tensor

    @property
    def shape(self) -> Shape:
        return self.weight.shape[0], self.weight.shape[1]

    def lost(self, decoded: Tensor) -> float:
        return loss(self.weight - decoded, self.judged) / loss(self.weight, self.judged)


class Network:
    """A network of the zoo, its layers of at most `columns` columns, or `layers` of them evenly spaced. A weight that
    something else reads too, such as an embedding, is left out.

    count: items of calibration data, whose halves are `given` and `judged`. A language model is judged whole where all
    its layers are taken: `limit` bounds the stories of its likelihood.
    """

    def __init__(
        self, name: str, count: int, layers: int | None, columns: int, limit: int | None, progress: Progress
    ) -> None:
        self.entry: Entry = MODELS[name]
        self.whole = layers is None and self.entry.metric == "NLL/token"
        self.limit = limit
        batch = min(self.entry.batch, max(2, count // 2))
        example = self.entry.example_inputs(batch)
        sizes = {0: Dim("batch", min=1, max=1024)}
        traced = graphc.trace(self.entry.build(), example, dynamic_shapes=tuple(sizes for _ in example))
        self.graph = Pipeline(CLEAN).run(traced)
        data = batches(self.graph, self.entry.calibration(count, batch))
        half = len(data) // 2
        self.given, self.judged = data[:half], data[half:]
        nodes = {}
        tied = {
            str(read.target)
            for node in self.graph.calls
            for read in node.all_input_nodes
            if read.op == "get_attr" and not (node.target in LAYERS and read is node.args[1])
        }
        for node in self.graph.calls:
            weight = self.graph.weight(node.args[1]) if node.target in LAYERS else None
            grouped = node.target is LAYERS[0] and node.args[8] != 1
            if weight is not None and not grouped and str(node.args[1].target) not in tied:  # type: ignore[union-attr]
                rows, depth = weight.flatten(1).shape
                if min(rows, depth) >= LEAST and depth <= columns:
                    nodes[str(node.args[1].target)] = node  # type: ignore[union-attr]
        chosen = list(nodes)
        if layers is not None and len(chosen) > layers:
            chosen = [chosen[round(i * (len(chosen) - 1) / max(1, layers - 1))] for i in range(layers)]
        kept = [nodes[name] for name in chosen]
        seen, unseen = (
            second_moments(self.graph, kept, PassContext(calibration=part, progress=progress))
            for part in (self.given, self.judged)
        )
        self.layers = [
            Layer(name, self.graph.weights[name].detach().flatten(1), seen[node], unseen[node])
            for name, node in zip(chosen, kept, strict=True)
        ]

    def changed(self, decoded: Mapping[str, Tensor]) -> Graph:
        graph = self.graph.clone()
        for name, weight in decoded.items():
            graph.weights[name] = weight.reshape(graph.weights[name].shape)
        return graph

    @cached_property
    def _expected(self) -> dict[int, list[Tensor]]:
        return {id(part): [_logits(self.graph, batch) for batch in part] for part in (self.given, self.judged)}

    def divergence(self, decoded: Mapping[str, Tensor], data: Sequence[Any] | None = None) -> float:
        """KL(original || changed) of the results, the mean over positions, in nats; `data` is one of the halves."""
        part, graph = self.judged if data is None else data, self.changed(decoded)
        total = [
            (known.exp() * (known - _logits(graph, batch))).sum(-1).mean()
            for known, batch in zip(self._expected[id(part)], part, strict=True)
        ]
        return float(torch.stack(total).mean())

    def judge(self, decoded: Mapping[str, Tensor]) -> Figures:
        """Of all layers together, where the network is judged whole."""
        if not self.whole:
            return {}
        found = self.entry.evaluate(self.changed(decoded).run, self.limit)
        return {"KL": self.divergence(decoded), self.entry.metric: found}


def _logits(graph: Graph, batch: Sequence[Tensor]) -> Tensor:
    with torch.no_grad():
        return graph.run_flat(list(batch))[0].double().log_softmax(-1)


def encoded(form: Format, layer: Layer, moments: Tensor | None) -> tuple[Tensor, int]:
    """The decoded weight, and its bytes."""
    parts = form.encode(layer.weight, moments)
    return form.decode(parts, layer.shape), form.bytes(parts)


def compared(network: Network, forms: Mapping[str, Callable[[Layer], tuple[Tensor, int]]], show: Progress) -> Figures:
    """Each way of storing the layers: mean losses, bits, and the whole network."""
    rows: Figures = {name: {"losses": [], "bytes": 0, "decoded": {}} for name in forms}
    for number, layer in enumerate(network.layers):
        show("encoding", number, len(network.layers))
        for name, encode in forms.items():
            decoded, size = encode(layer)
            rows[name]["losses"].append(layer.lost(decoded))
            rows[name]["bytes"] += size
            rows[name]["decoded"][layer.name] = decoded
    weights = sum(layer.weight.numel() for layer in network.layers)
    return {
        name: {
            "bits a weight": round(8 * row["bytes"] / weights, 4),
            "loss, geometric mean": math.exp(sum(map(math.log, row["losses"])) / len(row["losses"])),
            "losses": row["losses"],
            **network.judge(row["decoded"]),
        }
        for name, row in rows.items()
    }


def beaten(rows: Figures, best: str, other: str) -> Figures:
    """Whether `best` loses less than `other`, and in how many layers."""
    pairs = list(zip(rows[best]["losses"], rows[other]["losses"], strict=True))
    found = {
        "holds": all(rows[best][key] < rows[other][key] for key in ("loss, geometric mean", "KL") if key in rows[best]),
        "layers": f"{sum(a < b for a, b in pairs)} of {len(pairs)}",
    }
    return {f"{best} < {other}": found}
