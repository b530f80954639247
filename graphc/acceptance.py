"""Whether an artifact keeps its budget, measured on the artifact itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch

from graphc.artifact import Artifact
from graphc.budget import Budget
from graphc.errors import BudgetError, GraphcError
from graphc.graph import Graph

Metric: TypeAlias = Callable[[Callable[..., Any]], float]

_RUNS = 20


@dataclass(frozen=True)
class Figures:
    """What was measured of an artifact: bytes of weights and of code, and, where the budget bounds them, the metric
    with what it lost against the float model, and milliseconds of a run (the median). held_back: what the metric on
    held-back data lost, where it was measured."""

    weights: int
    code: int
    metric: float | None = None
    drop: float | None = None
    milliseconds: float | None = None
    held_back: float | None = None

    @property
    def size(self) -> int:
        return self.weights + self.code

    def broken(self, budget: Budget) -> list[str]:
        """The bounds that are not kept, each a line with the figures. NaN keeps no bound."""
        lines = []
        if budget.bytes is not None and self.size > budget.bytes:
            lines.append(f"size: {self.size:,} bytes ({self.weights:,} weights, {self.code:,} code) > {budget.bytes:,}")
        if budget.metric_drop is not None and self.metric is not None and self.drop is not None:
            before, text = self.metric + self.drop, f"a drop of {self.drop:.4g} > {budget.metric_drop:.4g}"
            lines += [] if self.drop <= budget.metric_drop else [f"metric: {before:.6g} -> {self.metric:.6g}, {text}"]
        if budget.metric_drop is not None and self.held_back is not None and not self.held_back <= budget.metric_drop:
            lines.append(f"metric on held-back data: a drop of {self.held_back:.4g} > {budget.metric_drop:.4g}")
        if budget.latency is not None and self.milliseconds is not None and not self.milliseconds <= budget.latency:
            lines.append(f"latency: {self.milliseconds:.3g} ms (median of {_RUNS} runs) > {budget.latency:.3g} ms")
        return lines


class Judge:
    """Measures artifacts of one model; the float model's metrics are measured once.

    held_back: the metric on data that no search looks at; it has the last word. Raises BudgetError where the metric is
    to be bounded and there is none.
    """

    def __init__(self, budget: Budget, source: Graph, metric: Metric | None, held_back: Metric | None = None) -> None:
        if budget.metric_drop is not None and metric is None:
            raise BudgetError("Budget(metric_drop=...) needs metric=, a callable(run) -> float where higher is better")
        self.budget, self._source, self._metric, self._held_back = budget, source, metric, held_back
        self._float: dict[Metric, float] = {}

    def measure(self, artifact: Artifact) -> Figures:
        """All but what the held-back data say."""
        metric = drop = milliseconds = None
        if self.budget.metric_drop is not None and self._metric is not None:
            metric, drop = self._measured(self._metric, artifact)
        if self.budget.latency is not None:
            milliseconds = latency(artifact, self._source)
        return Figures(artifact.size.weights, artifact.size.code, metric, drop, milliseconds)

    def verified(self, artifact: Artifact, figures: Figures) -> Figures:
        """The figures with the drop on the held-back data, where there are any and the drop is bounded."""
        if self._held_back is None or self.budget.metric_drop is None or figures.held_back is not None:
            return figures
        return replace(figures, held_back=self._measured(self._held_back, artifact)[1])

    def _measured(self, metric: Metric, artifact: Artifact) -> tuple[float, float]:
        """The metric, and how far it is below the float model's."""
        if metric not in self._float:
            self._float[metric] = metric(caller(self._source.run))
        value = metric(caller(artifact.run))
        return value, self._float[metric] - value


def caller(run: Callable[..., Any]) -> Callable[[Any], Any]:
    """run(batch) over one call's inputs, with numpy out: what a metric is given."""

    def call(batch: Any) -> Any:
        with torch.no_grad():
            if isinstance(batch, Mapping):
                outputs = run(**batch)
            else:
                outputs = run(*batch) if isinstance(batch, tuple | list) else run(batch)
        return _to_numpy(outputs)

    return call


def _to_numpy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, tuple | list):
        return type(value)(_to_numpy(item) for item in value)
    if isinstance(value, dict):
        return {key: _to_numpy(item) for key, item in value.items()}
    return value


def latency(artifact: Artifact, source: Graph) -> float:
    """Milliseconds of a run on random inputs, the median. Raises GraphcError for a target of another architecture."""
    from graphc.probe import random_inputs
    from graphc.target import machine_arch

    if artifact.target.arch != machine_arch():
        raise GraphcError("Budget(latency=...) is measured on the machine at hand, which has another architecture")
    args, kwargs = source.inputs.unflatten(random_inputs(source, 0))
    times = []
    for _ in range(_RUNS + 5):
        start = time.perf_counter()
        artifact.run(*args, **kwargs)
        times.append(time.perf_counter() - start)
    return float(np.median(times[5:])) * 1e3
