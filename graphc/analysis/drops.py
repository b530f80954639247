"""What the user's metric loses with one item replaced, measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from graphc.acceptance import Metric, caller
from graphc.analysis.candidates import FLOAT, Candidate, Candidates, Key
from graphc.analysis.outputs import replaced
from graphc.errors import BudgetError
from graphc.graph import Graph
from graphc.parallel import spread
from graphc.pipeline import PassContext


def metric_drops(graph: Graph, found: Candidates, ctx: PassContext) -> dict[Key, float]:
    """How far `ctx.metric` falls below the float graph's, in its own unit (negative: it rises); a job a candidate.

    Raises BudgetError without a metric.
    """
    if ctx.metric is None:
        raise BudgetError("the sensitivity 'metric' needs metric=, a callable(run) -> float where higher is better")
    keys = found.changed
    jobs: list[tuple[Metric, Graph, Candidate | None]] = [(ctx.metric, graph, None)]
    jobs += [(ctx.metric, graph, found[key]) for key in keys]
    float_metric, *measured = spread(ctx, "measuring the metric", _measured, jobs)
    drops = {(item.name, FLOAT): 0.0 for item in found.groups}
    for key, value in zip(keys, measured, strict=True):
        drops[key] = float_metric - value if math.isfinite(value) else math.inf
    return drops


def _measured(metric: Callable[[Callable[..., Any]], float], graph: Graph, candidate: Candidate | None) -> float:
    return metric(caller(graph.run if candidate is None else replaced(graph, candidate).run))
