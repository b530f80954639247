"""The search for an artifact that keeps a budget: formats are assigned by predicted losses, bounds judged on artifacts.

With a bound on the metric's drop, sizes are bisected for the smallest whose best assignment keeps it, as if the drop
fell with size. It does so in the large; so the sizes just below are tried as well, for as long as one of the last few
keeps the bound. What is returned was measured, and has to keep the bounds on the held-back data too: from the smallest
that was tried, then from ever larger ones, the first that does is it.
Without, the assignment of least predicted loss is sought: what an artifact takes beyond its layers and their times
(other weights, code and operators) is measured on each artifact, and left to the next; of those that keep the bounds
the one whose outputs diverge least is best. Where time is bounded, int8 arithmetic for the whole network competes too.
A size is of weights and code: what a kernel takes is known from the first artifact, and layers alike share theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from graphc.acceptance import Figures, Judge
from graphc.analysis.candidates import FLOAT, FORMATS, Key, compressing
from graphc.analysis.outputs import change
from graphc.artifact import Artifact
from graphc.assignment import Assignment
from graphc.assignment.integer_program import Measure, integer_program
from graphc.board import Board
from graphc.errors import BudgetError
from graphc.exploration import Space, space
from graphc.graph import Graph
from graphc.pipeline import PRESETS, PassContext, Pipeline

Build = Callable[[Pipeline], tuple[Artifact, Graph]]

_FINE, _COARSE = 1.02, 1.1  # ratios of sizes: what the front is bisected to, and steps up the front
_BELOW, _PATIENCE = 1.04, 3  # steps down from there, and how many in a row may break the bound before that is the end
_TRIES = 8  # artifacts built at most for bounds on size and latency
_JUDGED = 4  # calibration batches that tell how far the outputs diverge
_WHOLE = "int8"  # the preset that competes where time is bounded


@dataclass(frozen=True)
class Tried:
    """Passes with the artifact that they gave, its figures, and the divergence of its outputs in nats.

    assignment: None for a preset, whose name is `formats`.
    """

    formats: str
    pipeline: Pipeline
    artifact: Artifact
    figures: Figures
    divergence: float
    assignment: Assignment | None = None


class Search:
    """What was tried so far, by formats."""

    def __init__(self, source: Graph, ctx: PassContext, judge: Judge, build: Build, found: Space) -> None:
        self._source, self._ctx, self.judge, self._build, self.space = source, ctx, judge, build, found
        self.tried: dict[str, Tried] = {}
        self.kernel = 0.0  # bytes of a kernel: the mean over the first assignment that was tried
        bound = judge.budget.latency
        self.nanoseconds = None if bound is None else bound * 1e6

    def assignment(self, minimize: Measure = "loss", **bounds: float | None) -> Assignment:
        """The best one, the code of its kernels counted. Raises BudgetError where nothing fits."""
        return integer_program(self.space.choices, minimize=minimize, kernel=self.kernel, **bounds)

    def attempt(self, assignment: Assignment) -> Tried:
        row = self._attempt(str(assignment), self.space.pipeline(assignment), assignment)
        self.kernel = self.kernel or row.figures.code / row.artifact.kernels
        return row

    def preset(self, name: str) -> Tried:
        return self._attempt(name, Pipeline(PRESETS[name]), None)

    def _attempt(self, formats: str, pipeline: Pipeline, assignment: Assignment | None) -> Tried:
        if formats not in self.tried:
            artifact, graph = self._build(pipeline)
            kl = change(self._source, graph, self._ctx.calibration[:_JUDGED]).kl
            figures = self.judge.measure(artifact)
            self.tried[formats] = Tried(formats, pipeline, artifact, figures, kl, assignment)
            self._ctx.progress("searching", len(self.tried), _TRIES)
        return self.tried[formats]

    def kept(self) -> list[Tried]:
        """Those that keep the bounds, as far as was measured, by size."""
        rows = sorted(self.tried.values(), key=lambda row: (row.figures.size, row.formats))
        return [row for row in rows if not row.figures.broken(self.judge.budget)]

    def verify(self, row: Tried) -> Tried:
        """With what the held-back data say."""
        found = replace(row, figures=self.judge.verified(row.artifact, row.figures))
        self.tried[row.formats] = found
        return found


def search(
    source: Graph,
    ctx: PassContext,
    judge: Judge,
    build: Build,
    formats: Sequence[str] | None = None,
    recovery: int | None = None,
) -> Tried:
    """An artifact that keeps the judge's budget, with all that was measured on the way in its report.

    build: an artifact, and the graph that it was lowered from. formats: None for all of FORMATS. recovery: steps,
    None for as many as are quick. Raises BudgetError, with the nearest that was found, where none does.
    """
    latency, competing = judge.budget.latency, FORMATS if formats is None else formats
    nanoseconds = None if latency is None else layer_latencies(source, ctx, competing)
    here = replace(ctx, executor=None) if isinstance(ctx.executor, Board) else ctx  # a board only measures
    found = space(source, here, competing, nanoseconds=nanoseconds, recovery=recovery)
    state = Search(source, ctx, judge, build, found)
    if latency is not None:
        state.preset(_WHOLE)
    best = _smallest(state) if judge.budget.metric_drop is not None else _nearest(state)
    rows = sorted(state.tried.values(), key=lambda row: (row.figures.size, row.formats))
    if best is None:
        nearest = min(rows, key=lambda row: _excess(row.figures, judge))
        raise BudgetError(
            f"no assignment of formats keeps the budget; of {len(rows)} that were measured the nearest breaks\n  "
            + "\n  ".join(nearest.figures.broken(judge.budget))
            + f"\nwith the pipeline {nearest.pipeline}\nRaise the bound to that, or give other formats."
        )
    report = best.artifact.report()
    front = tuple(_row(row, chosen=row is best) for row in rows)
    artifact = best.artifact.with_report(type(report)(report.rows, report.totals, report.facts, front))
    return replace(best, artifact=artifact)


def _smallest(state: Search) -> Tried | None:
    """The smallest artifact that was found to keep all bounds, on the held-back data too."""
    budget, time = state.judge.budget, state.nanoseconds

    def ends() -> tuple[Assignment, Assignment]:
        """Of the front: the least size, and the least loss."""
        try:
            return state.assignment("bytes", latency=time), state.assignment(latency=time)
        except BudgetError:  # the layers alone take more time than there is
            fastest = state.assignment("nanoseconds")
            return fastest, fastest

    def keeps(assignment: Assignment) -> bool:
        drop = state.attempt(assignment).figures.drop
        return drop is not None and budget.metric_drop is not None and drop <= budget.metric_drop

    def size(assignment: Assignment) -> int:
        return math.ceil(assignment.size(state.kernel))

    least, best = ends()
    if least != best:  # what lies between tells what its code takes
        state.attempt(state.assignment(size=math.isqrt(size(least) * size(best)), latency=time))
        least, best = ends()
    low, high = size(least), size(best)  # the least size that keeps the bound is between them
    while high > low * _FINE + 1:
        middle = max(math.isqrt(low * high), low + 1)
        tried = state.assignment(size=middle, latency=time)
        if keeps(tried):
            high = min(middle, max(low, size(tried)))
        else:
            low = middle
    below, broken = math.floor(high / _BELOW), 0
    while broken < _PATIENCE and below >= size(least):
        tried = state.assignment(size=below, latency=time)
        broken = 0 if keeps(tried) else broken + 1
        below = min(math.floor(below / _BELOW), size(tried) - 1)
    for row in state.kept():
        if not (row := state.verify(row)).figures.broken(budget):
            return row
    above = high
    while True:  # the drop does not fall along the front, or is another on the held-back data
        above = min(math.ceil(above * _COARSE), size(best))
        row = state.attempt(best if above == size(best) else state.assignment(size=above, latency=time))
        if not row.figures.broken(budget) and not (row := state.verify(row)).figures.broken(budget):
            return row
        if above == size(best):
            return None


def _nearest(state: Search) -> Tried | None:
    """The artifact within the bounds whose outputs diverge least from the float model's."""
    budget = state.judge.budget
    beside = {"bytes": float(state.space.fixed), "nanoseconds": 0.0}  # what an artifact takes beyond its items
    for _ in range(_TRIES):
        size = None if budget.bytes is None else budget.bytes - beside["bytes"]
        time = None if state.nanoseconds is None else state.nanoseconds - beside["nanoseconds"]
        before = len(state.tried)
        try:
            assignment = state.assignment(size=size, latency=time)
        except BudgetError:  # the least that there is may be less than expected, or is the nearest
            state.attempt(state.assignment("nanoseconds" if budget.bytes is None else "bytes"))
            break
        figures = state.attempt(assignment).figures
        if len(state.tried) == before:
            break
        beside["bytes"] = max(beside["bytes"], figures.size - assignment.size(state.kernel))
        if figures.milliseconds is not None:
            beside["nanoseconds"] = max(beside["nanoseconds"], figures.milliseconds * 1e6 - assignment.nanoseconds)
    return min(state.kept(), key=lambda row: (row.divergence, row.figures.size), default=None)


def layer_latencies(source: Graph, ctx: PassContext, formats: Sequence[str]) -> Mapping[Key, float]:
    """Nanoseconds of the items, in the formats that all their layers were measured in, here or on a board."""
    from graphc.analysis.items import items
    from graphc.latency import measure
    from graphc.pipeline import CLEAN

    passes = {text: f"{compressing(text, data=True, unfit='keep')},split_sums,split_low_rank" for text in formats}
    board = ctx.executor if isinstance(ctx.executor, Board) else None
    table = measure(source, ctx.target, passes, executor=board, progress=ctx.progress)
    found = {}
    for item in items(Pipeline(CLEAN).run(source, ctx)):
        for text in (FLOAT, *formats):
            if all((layer, text) in table for layer in item.layers):
                found[item.name, text] = sum(table[layer, text].nanoseconds for layer in item.layers)
    return found


def _excess(figures: Figures, judge: Judge) -> float:
    """How far the bounds are broken, relative to them, all together."""
    budget, total = judge.budget, 0.0
    for value, bound in (
        (figures.size, budget.bytes),
        (figures.drop, budget.metric_drop),
        (figures.held_back, budget.metric_drop),
        (figures.milliseconds, budget.latency),
    ):
        if value is not None and bound is not None:
            total += max((value - bound) / max(bound, 1e-9), 0.0) if math.isfinite(value) else math.inf
    return total


def _row(row: Tried, chosen: bool) -> dict[str, Any]:
    figures = row.figures
    return {
        "bytes": figures.size,
        "bytes of weights": figures.weights,
        "predicted loss": None if row.assignment is None else row.assignment.loss,
        "divergence": _finite(row.divergence),
        "metric": _finite(figures.metric),
        "drop": _finite(figures.drop),
        "drop on held-back data": _finite(figures.held_back),
        "milliseconds": figures.milliseconds,
        "chosen": chosen,
        "formats": row.formats,
    }


def _finite(value: float | None) -> float | None:
    """JSON has no NaN."""
    return value if value is not None and math.isfinite(value) else None
