"""The search under bounds on time, and the promise on held-back data.

Times are a table's: nothing is timed. Lowereds are graphs that run in torch: what is lowered is tested elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphc
from graphc import acceptance, compiler, search
from graphc.analysis.candidates import FLOAT
from graphc.artifact import Size
from graphc.assignment.integer_program import integer_program
from graphc.errors import BudgetError
from graphc.exploration import space
from graphc.graph import Graph
from graphc.passes.compress import Compress
from graphc.pipeline import PRESETS, PassContext, Pipeline
from graphc.report import Report

LAYERS = ("0", "2", "4")
FORMATS = ("linear", "linear(bits=4)", "vector(d=2,codewords=16)", "vector(d=4,codewords=16)")
TIMES = dict(zip((FLOAT, *FORMATS), (1.0, 0.6, 0.7, 0.8, 0.4), strict=True))  # milliseconds of a layer
BESIDE, WHOLE = 0.25, 0.5  # of the operators between the layers; of the network in int8


class Lowered:
    """A graph as an artifact; a kernel, one for each format, takes `KERNEL` bytes."""

    KERNEL = 0

    def __init__(self, graph: Graph, report: Report) -> None:
        self._graph, self._report = graph, report
        weights = sum(weight.nbytes for weight in graph.weights.values())
        self.kernels = len(set(formats(report).values()))
        code = self.KERNEL * self.kernels
        self.size = Size(weights, code, weights + code)

    def run(self, *inputs: torch.Tensor) -> Any:
        with torch.no_grad():
            return self._graph.run(*inputs).numpy()

    def report(self) -> Report:
        return self._report

    def with_report(self, report: Report) -> Lowered:
        return Lowered(self._graph, report)


def lowered(passes: Pipeline, source: Graph, ctx: PassContext, *rest: Any) -> tuple[Lowered, Graph]:
    graph = passes.run(source, ctx)
    return Lowered(graph, Report((), {}, {"pipeline": str(passes)})), graph


def formats(report: Report) -> dict[str, str]:
    """Of each layer."""
    passes = Pipeline(report.facts["pipeline"]).passes
    chosen = {layer: each.format for each in passes if isinstance(each, Compress) for layer in each.layers}
    return {layer: chosen.get(layer, FLOAT) for layer in LAYERS}


def milliseconds(artifact: Lowered, source: Any = None) -> float:
    """What the table says of an artifact's layers, and what lies between them."""
    if artifact.report().facts["pipeline"] == PRESETS["int8"]:
        return WHOLE
    return BESIDE + sum(TIMES[text] for text in formats(artifact.report()).values())


@pytest.fixture(autouse=True)
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {(layer, text): 1e6 * time for layer in LAYERS for text, time in TIMES.items()}
    monkeypatch.setattr(search, "layer_latencies", lambda source, ctx, formats: known)
    monkeypatch.setattr(acceptance, "latency", milliseconds)
    monkeypatch.setattr(compiler, "_build", lowered)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 32, generator=generator) for _ in range(4)]


@pytest.fixture
def compiled(model: nn.Module, batches: list[torch.Tensor]) -> Callable[..., Lowered]:
    def compile(*args: Any, **kwargs: Any) -> Lowered:
        return graphc.compile(
            model, "host", (batches[0],), batches, graphc.Budget(**kwargs), *args, formats=FORMATS, recovery=5
        )

    return compile


def chosen(artifact: Lowered) -> Any:
    (point,) = (point for point in artifact.report().front if point["chosen"])
    return point


def test_time_is_kept_by_what_diverges_least(compiled: Callable[..., Lowered]) -> None:
    found = compiled(latency=2.7)
    point = chosen(found)
    assert point["milliseconds"] == pytest.approx(milliseconds(found))
    assert point["milliseconds"] <= 2.7
    kept = [row for row in found.report().front if row["milliseconds"] <= 2.7]
    assert point["divergence"] == min(row["divergence"] for row in kept)
    assert {row["formats"] for row in kept} >= {"int8"}, "int8 arithmetic competes"
    assert point["milliseconds"] > 2.0, "there is time for more than 8 bits in all layers, and what lies between them"


def test_room_to_spare_leaves_the_floats(compiled: Callable[..., Lowered]) -> None:
    assert chosen(compiled(latency=9.0))["divergence"] == pytest.approx(0, abs=1e-9)


def test_size_and_time_are_kept_together(compiled: Callable[..., Lowered]) -> None:
    loose, tight = compiled(latency=2.3, size=12_000), compiled(latency=2.3, size="6 kB")
    for found, bound in ((loose, 12_000), (tight, 6_000)):
        assert found.size <= bound
        assert chosen(found)["milliseconds"] <= 2.3
    assert chosen(tight)["divergence"] > chosen(loose)["divergence"]


def test_int8_wins_where_no_choice_of_formats_is_fast_enough(compiled: Callable[..., Lowered]) -> None:
    found = compiled(latency=1.0)
    assert chosen(found)["formats"] == "int8"
    assert found.report().facts["pipeline"] == PRESETS["int8"]
    with pytest.raises(BudgetError, match=r"the nearest breaks\n  latency: 0.5 ms .* > 0.1 ms"):
        compiled(latency=0.1)


def test_a_drop_and_time_are_kept_together(compiled: Callable[..., Lowered], agreement: Any) -> None:
    found = compiled(agreement(0), latency=2.0, metric_drop=5.0)
    assert chosen(found)["drop"] <= 5.0 and chosen(found)["milliseconds"] <= 2.0


def test_layers_alike_share_a_format_where_the_code_of_another_takes_more_than_it_saves(
    batches: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(32, 32) for _ in LAYERS]
    alike = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2], nn.ReLU()).eval()
    monkeypatch.setattr(Lowered, "KERNEL", 2000)

    def found() -> Lowered:
        budget = graphc.Budget(size=4500)
        return graphc.compile(alike, "host", (batches[0],), batches, budget, formats=FORMATS, recovery=0)

    assert found().size <= 4500 and found().kernels == 1
    blind = integer_program
    monkeypatch.setattr(search, "integer_program", lambda *args, kernel, **bounds: blind(*args, **bounds))
    with pytest.raises(BudgetError, match="no assignment of formats keeps the budget"):
        found()


@pytest.fixture
def agreement(model: nn.Module) -> Any:
    """agreement(seed): per cent of the float model's predictions, on data of that seed."""

    def metric_on(seed: int) -> acceptance.Metric:
        generator = torch.Generator().manual_seed(100 + seed)
        data = [torch.randn(16, 32, generator=generator) for _ in range(8)]
        with torch.no_grad():
            labels = [model(batch).argmax(1).numpy() for batch in data]

        def metric(run: Callable[..., Any]) -> float:
            return 100.0 * float(np.mean([run(x).argmax(1) == y for x, y in zip(data, labels, strict=True)]))

        return metric

    return metric_on


def test_the_search_steps_back_until_the_held_back_data_agree(
    model: nn.Module, batches: list[torch.Tensor], agreement: Any
) -> None:
    """The metric that is searched with finds everything good; so the smallest of all is tried first."""
    budget, held_back = graphc.Budget(metric_drop=4.0), agreement(1)
    found = graphc.compile(
        model, "host", (batches[0],), batches, budget, lambda run: 1.0, held_back=held_back, formats=FORMATS, recovery=5
    )
    points = found.report().front
    assert 100 - held_back(lambda batch: found.run(batch)) == pytest.approx(chosen(found)["drop on held-back data"])
    assert chosen(found)["drop on held-back data"] <= 4.0
    assert points[0]["drop on held-back data"] > 4.0 and not points[0]["chosen"]
    alone = graphc.compile(model, "host", (batches[0],), batches, budget, lambda run: 1.0, formats=FORMATS, recovery=5)
    assert alone.size < found.size, "without held-back data the metric has the last word"


def test_a_drop_that_does_not_fall_with_size_is_kept(
    model: nn.Module, batches: list[torch.Tensor], agreement: Any
) -> None:
    """A metric that is wrong about every second artifact: what is returned keeps the bound on both."""
    calls, true = [0], agreement(2)

    def erratic(run: Callable[..., Any]) -> float:
        calls[0] += 1
        return true(run) - (50.0 if calls[0] % 2 == 0 else 0.0)

    found = graphc.compile(
        model,
        "host",
        (batches[0],),
        batches,
        graphc.Budget(metric_drop=4.0),
        erratic,
        held_back=true,
        formats=FORMATS,
        recovery=5,
    )
    assert chosen(found)["drop"] <= 4.0 and chosen(found)["drop on held-back data"] <= 4.0
    assert 100 - true(lambda batch: found.run(batch)) <= 4.0


@pytest.fixture(scope="module")
def front(model: nn.Module, batches: list[torch.Tensor]) -> list[int]:
    """Bytes of all assignments that are best at some size."""
    ctx = PassContext(calibration=[[batch] for batch in batches])
    found = space(graphc.trace(model, (batches[0],)), ctx, FORMATS, recovery=5)
    least, most = (integer_program(found.choices, minimize=what).bytes for what in ("bytes", "loss"))
    return sorted({integer_program(found.choices, size=size).bytes + found.fixed for size in range(least, most, 60)})


def drop_by_size(monkeypatch: pytest.MonkeyPatch, drop: Callable[[int], float]) -> None:
    monkeypatch.setattr(
        acceptance.Judge, "_measured", lambda judge, metric, artifact: (0.0, drop(artifact.size.weights))
    )


@pytest.mark.parametrize("share", [0.2, 0.4, 0.6, 0.8])
def test_a_drop_that_falls_with_size_gives_the_least_size_to_two_per_cent(
    front: list[int], share: float, compiled: Callable[..., Lowered], monkeypatch: pytest.MonkeyPatch
) -> None:
    enough = front[int(share * len(front))]
    drop_by_size(monkeypatch, lambda size: 0.0 if size >= enough else 9.0)
    monkeypatch.setattr(search, "_PATIENCE", 0)
    found = compiled(lambda run: 0.0, metric_drop=1.0)
    assert enough <= found.size.weights <= 1.02 * enough


@pytest.mark.parametrize(("place", "below"), [(5, 3), (8, 6), (10, 8), (13, 12)])
def test_a_smaller_size_that_keeps_the_bound_is_found_below_one_that_breaks_it(
    front: list[int], place: int, below: int, compiled: Callable[..., Lowered], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In places where bisection does not come by."""
    enough, island = front[place], front[below]
    drop_by_size(monkeypatch, lambda size: 0.0 if size >= enough or abs(size - island) < 8 else 9.0)
    assert abs(compiled(lambda run: 0.0, metric_drop=1.0).size.weights - island) < 8


def test_held_back_data_that_nothing_keeps_show_the_nearest(model: nn.Module, batches: list[torch.Tensor]) -> None:
    with pytest.raises(BudgetError, match="the nearest breaks\n  metric on held-back data: a drop of nan > 1"):
        graphc.compile(
            model, "host", (batches[0],), batches, graphc.Budget(metric_drop=1.0), lambda run: 1.0,
            held_back=lambda run: float("nan"), formats=FORMATS[:2], recovery=0,
        )  # fmt: skip


def test_a_given_pipeline_must_keep_the_held_back_data_too(model: nn.Module, batches: list[torch.Tensor]) -> None:
    with pytest.raises(BudgetError, match="does not keep its budget:\n  metric on held-back data"):
        graphc.compile(
            model, "host", (batches[0],), batches, graphc.Budget(metric_drop=1.0), lambda run: 1.0, "int8",
            held_back=lambda run: float("nan"),
        )  # fmt: skip
