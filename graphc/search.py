"""The search for an artifact that keeps a budget: formats are assigned by predicted losses, bounds judged on artifacts.

With a bound on the metric's drop, the front of best assignments is bisected for the smallest artifact that keeps it
(the drop is taken to fall along the front; what is returned was measured itself, whatever falls). Without, the
assignment of least predicted loss is sought: what an artifact takes beyond its layers' weights and times (code, other
weights, other operators) is measured on each artifact, and left to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from graphc.acceptance import Figures, Judge
from graphc.analysis.candidates import FLOAT, FORMATS, Key
from graphc.artifact import Artifact
from graphc.assignment import Assignment
from graphc.assignment.integer_program import integer_program
from graphc.board import Board
from graphc.errors import BudgetError
from graphc.exploration import Space, space
from graphc.graph import Graph
from graphc.pipeline import PassContext, Pipeline

_POINTS = 24  # of the front that is bisected
_TRIES = 8  # artifacts built at most for bounds on size and latency


@dataclass(frozen=True)
class Tried:
    """An assignment with the artifact that it gave, and its figures."""

    assignment: Assignment
    pipeline: Pipeline
    artifact: Artifact
    figures: Figures


def search(source: Graph, ctx: PassContext, judge: Judge, build: Callable[[Pipeline], Artifact]) -> Tried:
    """An artifact that keeps the judge's budget, with all that was measured on the way in its report.

    Raises BudgetError, with the nearest that was found, where none does.
    """
    latency = judge.budget.latency
    nanoseconds = None if latency is None else _latencies(source, ctx)
    here = replace(ctx, executor=None) if isinstance(ctx.executor, Board) else ctx  # a board only measures
    found = space(source, here, FORMATS, nanoseconds=nanoseconds)
    tried: dict[str, Tried] = {}

    def attempt(assignment: Assignment) -> Tried:
        text = str(assignment)
        if text not in tried:
            pipeline = found.pipeline(assignment)
            artifact = build(pipeline)
            tried[text] = Tried(assignment, pipeline, artifact, judge.measure(artifact))
            ctx.progress("searching", len(tried), _TRIES)
        return tried[text]

    if judge.budget.metric_drop is not None:
        _bisect(found, judge, attempt)
    else:
        _approach(found, judge, attempt)
    rows = sorted(tried.values(), key=lambda row: (row.figures.size, str(row.assignment)))
    kept = [row for row in rows if not row.figures.broken(judge.budget)]
    if not kept:
        nearest = min(rows, key=lambda row: _excess(row.figures, judge))
        raise BudgetError(
            f"no assignment of formats keeps the budget; of {len(rows)} that were measured the nearest breaks\n  "
            + "\n  ".join(nearest.figures.broken(judge.budget))
            + f"\nwith the pipeline {nearest.pipeline}\nRaise the bound to that, or give other formats."
        )
    smallest = judge.budget.metric_drop is not None
    best = kept[0] if smallest else min(kept, key=lambda row: (row.assignment.loss, row.figures.size))
    report = best.artifact.report()
    front = tuple(_row(row, found, chosen=row is best) for row in rows)
    artifact = best.artifact.with_report(type(report)(report.rows, report.totals, report.facts, front))
    return Tried(best.assignment, best.pipeline, artifact, best.figures)


def _bisect(found: Space, judge: Judge, attempt: Callable[[Assignment], Tried]) -> None:
    front = found.front(_POINTS)
    bound = judge.budget.metric_drop
    low, high = 0, len(front)  # the first that keeps the bound is in [low, high]
    while low < high:
        middle = (low + high) // 2
        drop = attempt(front[middle]).figures.drop
        if drop is not None and bound is not None and drop <= bound:
            high = middle
        else:
            low = middle + 1


def _approach(found: Space, judge: Judge, attempt: Callable[[Assignment], Tried]) -> None:
    budget = judge.budget
    beside = {"bytes": float(found.fixed), "nanoseconds": 0.0}  # what an artifact takes beyond its items
    seen: set[str] = set()
    for _ in range(_TRIES):
        size = None if budget.bytes is None else budget.bytes - beside["bytes"]
        time = None if budget.latency is None else budget.latency * 1e6 - beside["nanoseconds"]
        try:
            assignment = integer_program(found.choices, size=size, latency=time)
        except BudgetError:  # the least that there is may be less than expected, or is the nearest
            attempt(integer_program(found.choices, minimize="nanoseconds" if budget.bytes is None else "bytes"))
            return
        if str(assignment) in seen:
            return
        seen.add(str(assignment))
        figures = attempt(assignment).figures
        beside["bytes"] = max(beside["bytes"], figures.size - assignment.bytes)
        if figures.milliseconds is not None:
            beside["nanoseconds"] = max(beside["nanoseconds"], figures.milliseconds * 1e6 - assignment.nanoseconds)


def _latencies(source: Graph, ctx: PassContext) -> dict[Key, float]:
    """Nanoseconds of the items, in the formats that all their layers were measured in, here or on a board."""
    from graphc.analysis.items import items
    from graphc.latency import measure
    from graphc.pipeline import CLEAN

    passes = {text: f'compress{{format="{text}",unfit=keep}},split_sums,split_low_rank' for text in FORMATS}
    board = ctx.executor if isinstance(ctx.executor, Board) else None
    table = measure(source, ctx.target, passes, executor=board, progress=ctx.progress)
    found = {}
    for item in items(Pipeline(CLEAN).run(source, ctx)):
        for text in (FLOAT, *FORMATS):
            if all((layer, text) in table for layer in item.layers):
                found[item.name, text] = sum(table[layer, text].nanoseconds for layer in item.layers)
    return found


def _excess(figures: Figures, judge: Judge) -> float:
    """How far the bounds are broken, relative to them, all together."""
    budget, total = judge.budget, 0.0
    for value, bound in (
        (figures.size, budget.bytes),
        (figures.drop, budget.metric_drop),
        (figures.milliseconds, budget.latency),
    ):
        if value is not None and bound is not None:
            total += max((value - bound) / max(bound, 1e-9), 0.0) if math.isfinite(value) else math.inf
    return total


def _row(row: Tried, found: Space, chosen: bool) -> dict[str, Any]:
    figures = row.figures
    return {
        "bytes": figures.size,
        "bytes of weights": figures.weights,
        "predicted loss": row.assignment.loss,
        "metric": _finite(figures.metric),
        "drop": _finite(figures.drop),
        "milliseconds": figures.milliseconds,
        "chosen": chosen,
        "formats": str(row.assignment),
    }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None
