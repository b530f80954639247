"""The trade between size and loss: what can be chosen, and the whole front of best choices.

>>> front = graphc.explore(model, example_inputs=(x,), calibration=batches)
>>> print(front.to_text())
>>> graphc.compile(model, example_inputs=(x,), calibration=batches, pipeline=front.points[3].pipeline)
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphc import calibration as calibrating
from graphc.acceptance import Metric, caller
from graphc.analysis import SENSITIVITIES
from graphc.analysis.candidates import FORMATS, Key, candidates
from graphc.analysis.outputs import change
from graphc.assignment import Assignment, Choice, choices
from graphc.assignment.integer_program import integer_program
from graphc.cost import macs
from graphc.errors import GraphcError
from graphc.frontends import trace
from graphc.graph import Graph
from graphc.memory import kept_memory
from graphc.parallel import spread
from graphc.passes.recover import Recover
from graphc.pipeline import CLEAN, FINISH, Pass, PassContext, Pipeline
from graphc.progress import terminal
from graphc.target import Target

SENSITIVITY = "fisher"
_RECOVERY, _WORK = 100, 4e11  # steps at most, and multiply-accumulates


@dataclass(frozen=True)
class Space:
    """What can be chosen for a model: the clean float graph, the options of each item, the bytes of all weights that
    belong to no item, and the steps of recovery after an assignment is carried out."""

    clean: Graph
    choices: tuple[Choice, ...]
    fixed: int
    recovery: int = 0

    def pipeline(self, assignment: Assignment) -> Pipeline:
        """The passes from the traced graph to one that can be lowered."""
        last = Pipeline(f"split_sums,split_low_rank,{FINISH}").passes
        return Pipeline([*Pipeline(CLEAN).passes, *self._lossy(assignment), *last])

    def compressed(self, assignment: Assignment, ctx: PassContext) -> Graph:
        """The clean graph with the formats of an assignment, recovered."""
        return Pipeline(self._lossy(assignment)).run(self.clean, ctx)

    def _lossy(self, assignment: Assignment) -> list[Pass]:
        recovery: list[Pass] = [Recover(self.recovery)] if self.recovery and assignment.passes else []
        return [*assignment.passes, *recovery]

    def front(self, points: int, latency: float | None = None) -> list[Assignment]:
        """The assignments of least predicted loss at about `points` sizes, evenly spaced by their ratio, from the
        smallest that there is to the one of least loss; latency: nanoseconds that none exceeds."""
        best = integer_program(self.choices, latency=latency)
        smallest = integer_program(self.choices, latency=latency, minimize="bytes")
        sizes = np.geomspace(max(smallest.bytes, 1), max(best.bytes, 1), points)[:-1]
        found = [integer_program(self.choices, size=max(size, smallest.bytes), latency=latency) for size in sizes]
        return sorted({str(item): item for item in [*found, best]}.values(), key=lambda item: (item.bytes, str(item)))


def space(
    source: Graph,
    ctx: PassContext,
    formats: Sequence[str] = FORMATS,
    sensitivity: str = SENSITIVITY,
    nanoseconds: Mapping[Key, float] | None = None,
    recovery: int | None = None,
) -> Space:
    """Compress every layer in every format, and score it. Raises GraphcError for an unknown sensitivity.

    recovery: steps; None is as many as are quick, see `recovery_steps`.
    """
    if sensitivity not in SENSITIVITIES:
        raise GraphcError(f"unknown sensitivity '{sensitivity}'; known: {', '.join(SENSITIVITIES)}")
    clean = Pipeline(CLEAN).run(source, ctx)
    found = candidates(clean, formats, ctx)
    losses = SENSITIVITIES[sensitivity](clean, found, ctx)
    own = {name for item in found.groups for name in item.weights}
    fixed = sum(tensor.nbytes for name, tensor in clean.weights.items() if name not in own)
    steps = recovery_steps(clean, ctx) if recovery is None else recovery
    return Space(clean, choices(found, losses, nanoseconds), fixed, steps)


def recovery_steps(graph: Graph, ctx: PassContext) -> int:
    """Steps of recovery on the calibration batches that take up to about a minute on one core: at most 100, and none
    where fewer than 20 would do, which bring back little."""
    if not ctx.calibration:
        return 0
    sizes = graph.bind(ctx.calibration[0])
    larger = math.prod(size / max(graph.symbols[name.name].minimum, 1) for name, size in sizes.items())
    work = 3 * larger * sum(macs(graph, node) for node in graph.calls)  # forward, and twice as much backward
    steps = int(min(_RECOVERY, _WORK / max(work, 1)))
    return steps if steps >= _RECOVERY // 5 else 0


@dataclass(frozen=True)
class Point:
    """A choice on the front: bytes of all weights, and by how much they are smaller than in f32; the predicted loss (in
    the sensitivity's unit); kl: the measured divergence of the outputs in nats, and sqnr in decibel, over the
    calibration data; the metric, where one was given; and the pipeline to compile with."""

    bytes: int
    ratio: float
    predicted: float
    kl: float
    sqnr: float
    metric: float | None
    pipeline: str
    formats: Mapping[str, str]


@dataclass(frozen=True)
class Front:
    """All points by increasing size."""

    points: tuple[Point, ...]

    def to_text(self) -> str:
        """A table, a line a point."""
        from rich.console import Console
        from rich.table import Table

        names = ("bytes", "ratio", "predicted", "kl", "sqnr", "metric")
        table = Table(*names, "formats", box=None, pad_edge=False)
        for point in self.points:
            values = (getattr(point, name) for name in names)
            counts: dict[str, int] = {}
            for text in point.formats.values():
                counts[text] = counts.get(text, 0) + 1
            cells = ("" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
                     for value in values)  # fmt: skip
            table.add_row(*cells, " ".join(f"{count}x{text}" for text, count in sorted(counts.items())))
        console = Console(file=io.StringIO(), width=160, no_color=True, highlight=False)
        console.print(table, markup=False)
        return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw size against the metric, or against the divergence where no metric was given, into an image file."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        measured = [point.metric for point in self.points if point.metric is not None]
        judged = len(measured) == len(self.points)
        values = measured if judged else [point.kl for point in self.points]
        axes.plot([point.bytes / 1e3 for point in self.points], values, marker="o")
        axes.set(xscale="log", xlabel="kB of weights", ylabel="metric" if judged else "divergence, nats")
        axes.grid(alpha=0.3)
        figure.savefig(path)


def explore(
    model: Any,
    target: str | Target = "host",
    example_inputs: Sequence[Any] | None = None,
    calibration: Iterable[Any] | None = None,
    metric: Metric | None = None,
    *,
    formats: Sequence[str] = FORMATS,
    sensitivity: str = SENSITIVITY,
    points: int = 16,
    recovery: int | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    seed: int = 0,
    executor: Executor | None = None,
    progress: bool | None = None,
) -> Front:
    """The front of about `points` sizes: for each the formats of least predicted loss, and what they lose, measured.

    The first arguments are those of `graphc.compile`. formats: texts that compete for each layer. sensitivity: one of
    `graphc.analysis.SENSITIVITIES`. recovery: steps of training after compression (the pass `recover`), None for as
    many as are quick. The metric is measured in torch, which the compiled artifact agrees with.
    """
    resolved = Target.parse(target)
    with terminal(progress) as show, kept_memory():
        source = trace(model, example_inputs, example_kwargs, dynamic_shapes)
        data = calibrating.batches(source, calibration)
        ctx = PassContext(resolved, data, metric, None, seed, executor, show)
        found = space(source, ctx, formats, sensitivity, recovery=recovery)
        total = sum(tensor.nbytes for tensor in found.clean.weights.values())
        chosen = found.front(points)
        graphs = [found.compressed(assignment, ctx) for assignment in chosen]
        jobs = [(found.clean, graph, data, metric) for graph in graphs]
        measured = spread(ctx, "measuring the front", _measured, jobs)
    rows = []
    for assignment, (kl, sqnr, value) in zip(chosen, measured, strict=True):
        size = found.fixed + assignment.bytes
        pipeline = str(found.pipeline(assignment))
        rows.append(Point(size, total / max(size, 1), assignment.loss, kl, sqnr, value, pipeline, assignment.formats))
    return Front(tuple(rows))


def _measured(
    clean: Graph, graph: Graph, data: Sequence[Sequence[Any]], metric: Metric | None
) -> tuple[float, float, float | None]:
    found = change(clean, graph, data)
    return found.kl, found.sqnr, None if metric is None else metric(caller(graph.run))
