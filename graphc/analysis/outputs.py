"""What replacing one item does to the model's outputs, measured over the calibration data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphc.analysis.candidates import FLOAT, Candidate, Candidates, Key
from graphc.analysis.divergence import divergence, noise
from graphc.calibration import fitting_threads
from graphc.graph import Graph
from graphc.parallel import spread
from graphc.pipeline import PassContext


@dataclass(frozen=True)
class Change:
    """kl: nats, see `analysis.divergence`. noise: power of the error over that of the outputs, see `sqnr`."""

    kl: float
    noise: float

    @property
    def sqnr(self) -> float:
        """Signal-to-noise ratio of the outputs in decibel; infinite where nothing changed."""
        return -10 * math.log10(self.noise) if self.noise else math.inf


def changes(graph: Graph, found: Candidates, ctx: PassContext) -> dict[Key, Change]:
    """The change that each candidate makes on its own, the mean over `ctx.calibration`: one job for each item.

    Layer by layer as in Wu et al., "Integer Quantization for Deep Learning Inference", 2020, section 4.4.
    """
    jobs = []
    for item in found.groups:
        options = {key: found[key] for key in found.changed if key[0] == item.name}
        jobs.append((graph, options, ctx.calibration))
    rows = {(item.name, FLOAT): Change(0.0, 0.0) for item in found.groups}
    for made in spread(ctx, "replacing one layer", _changes, jobs):
        rows.update(made)
    return rows


def change(graph: Graph, other: Graph, calibration: Sequence[Sequence[Tensor]]) -> Change:
    """How far `other` is from `graph`, a graph of the same inputs, over the calibration batches."""
    rows = []
    with torch.no_grad(), fitting_threads(graph):
        for batch in calibration:
            expected, given = graph.run_flat(batch), other.run_flat(batch)
            rows.append((float(divergence(expected, given)), noise(expected, given)))
    return _mean(rows)


def replaced(graph: Graph, candidate: Candidate) -> Graph:
    """The graph with a candidate's weights in place of its own."""
    other = graph.clone()
    other.weights.update(candidate.weights)
    return other


def _changes(graph: Graph, options: dict[Key, Candidate], calibration: Sequence[Sequence[Tensor]]) -> dict[Key, Change]:
    rows: dict[Key, list[tuple[float, float]]] = {key: [] for key in options}
    graphs = {key: replaced(graph, candidate) for key, candidate in options.items()}
    with torch.no_grad(), fitting_threads(graph):
        for batch in calibration:
            expected = graph.run_flat(batch)
            for key, other in graphs.items():
                given = other.run_flat(batch)
                rows[key].append((float(divergence(expected, given)), noise(expected, given)))
    return {key: _mean(values) for key, values in rows.items()}


def _mean(rows: Sequence[tuple[float, float]]) -> Change:
    """A change that is not finite counts as infinite: NaN would compare as good."""
    kl, power = (sum(row[place] for row in rows) / max(len(rows), 1) for place in (0, 1))
    return Change(*(value if math.isfinite(value) else math.inf for value in (max(kl, 0.0), power)))
