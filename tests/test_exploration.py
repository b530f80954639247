"""The front of a model, and the search for an artifact that keeps a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphc
from graphc import exploration
from graphc.errors import BudgetError, GraphcError
from graphc.exploration import Front
from graphc.report import Report

FORMATS = (
    "linear", "linear(bits=4,range=mse,rounding=gptq)", "linear(bits=3)", "vector(d=2,codewords=16)",
    "vector(d=4,codewords=16)", "low_rank(rank=8)",
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


@pytest.fixture(scope="module")
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 32, generator=generator) for _ in range(4)]


@pytest.fixture(scope="module")
def agreement(model: nn.Module, batches: list[torch.Tensor]) -> Any:
    """Per cent of the float model's predictions."""
    with torch.no_grad():
        labels = [model(batch).argmax(1).numpy() for batch in batches]

    def metric(run: Any) -> float:
        return 100.0 * float(
            np.mean([run(batch).argmax(1) == label for batch, label in zip(batches, labels, strict=True)])
        )

    return metric


@pytest.fixture(scope="module")
def front(model: nn.Module, batches: list[torch.Tensor], agreement: Any) -> Front:
    return graphc.explore(model, "host", (batches[0],), batches, agreement, points=6, formats=FORMATS, recovery=5)


def test_the_front_rises_with_size(front: Front) -> None:
    sizes = [point.bytes for point in front.points]
    assert sizes == sorted(sizes) and len(set(sizes)) == len(sizes) >= 4
    predicted = [point.predicted for point in front.points]
    assert predicted == sorted(predicted, reverse=True)
    last, first = front.points[-1], front.points[0]
    assert last.predicted == 0 and last.kl == 0 and last.metric == 100 and last.ratio == 1
    assert first.ratio > 8 and first.kl > front.points[-2].kl


def test_the_front_prints_draws_and_compiles(
    front: Front, model: nn.Module, batches: list[torch.Tensor], tmp_path: Path
) -> None:
    assert len(front.to_text().splitlines()) == len(front.points) + 1
    front.plot(tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    point = front.points[-2]  # of small layers kernels fill up more than they read
    artifact = graphc.compile(model, "host", (batches[0],), batches, pipeline=point.pipeline)
    assert artifact.size.weights == pytest.approx(point.bytes, rel=0.3)
    assert "compress{" in artifact.report().facts["pipeline"]


def test_an_unknown_sensitivity_names_those_there_are(model: nn.Module, batches: list[torch.Tensor]) -> None:
    with pytest.raises(GraphcError, match="unknown sensitivity 'hunch'; known: kl, noise"):
        graphc.explore(model, "host", (batches[0],), batches, sensitivity="hunch")


def test_a_size_is_searched_for_and_the_front_reported(model: nn.Module, batches: list[torch.Tensor]) -> None:
    plain = graphc.compile(model, "host", (batches[0],))
    bound = plain.size.code + plain.size.weights // 2  # kernels that decode take more code, of a net this small
    found = graphc.compile(
        model, "host", (batches[0],), batches, graphc.Budget(size=bound), formats=FORMATS, recovery=5
    )
    assert found.size <= bound
    report = found.report()
    (chosen,) = (point for point in report.front if point["chosen"])
    assert chosen["bytes"] == found.size and chosen["formats"] in report.facts["pipeline"]
    assert Report.from_json(report.to_json()) == report
    assert "front" in report.to_text() and "Front" in report.to_html()
    again = graphc.compile(
        model, "host", (batches[0],), batches, graphc.Budget(size=bound), formats=FORMATS, recovery=5
    )
    assert again.content_hash == found.content_hash
    with pytest.raises(BudgetError, match=r"the nearest breaks\n  size: [\d,]+ bytes"):
        graphc.compile(model, "host", (batches[0],), batches, graphc.Budget(size=1000), formats=FORMATS, recovery=5)


def test_a_metric_drop_is_kept_by_the_smallest_that_was_found(
    model: nn.Module, batches: list[torch.Tensor], agreement: Any
) -> None:
    budget = graphc.Budget(metric_drop=5.0)
    found = graphc.compile(model, "host", (batches[0],), batches, budget, agreement, formats=FORMATS, recovery=5)
    measured = agreement(lambda batch: found.run(batch))
    assert 100 - measured <= 5.0
    points = found.report().front
    (chosen,) = (point for point in points if point["chosen"])
    assert chosen["drop"] == pytest.approx(100 - measured)
    assert all(point["drop"] > 5.0 for point in points if point["bytes"] < chosen["bytes"])
    assert len(points) > 2 and chosen["bytes"] < graphc.compile(model, "host", (batches[0],)).size


def test_a_metric_that_nothing_keeps_shows_the_nearest(model: nn.Module, batches: list[torch.Tensor]) -> None:
    def never(run: Any) -> float:
        return float("nan")

    with pytest.raises(BudgetError, match="the nearest breaks\n  metric"):
        graphc.compile(
            model, "host", (batches[0],), batches, graphc.Budget(metric_drop=1.0), never, formats=FORMATS, recovery=5
        )


def test_a_pipeline_is_only_checked(model: nn.Module, batches: list[torch.Tensor]) -> None:
    with pytest.raises(BudgetError, match="does not keep its budget"):
        graphc.compile(model, "host", (batches[0],), batches, graphc.Budget(size=1000), pipeline="int8")


def test_recovery_takes_as_many_steps_as_are_quick(
    model: nn.Module, batches: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    dynamic = ({0: torch.export.Dim("batch", min=2, max=64)},)
    graph = graphc.trace(model, (batches[0],), dynamic_shapes=dynamic)
    ctx = graphc.PassContext(calibration=[[batch] for batch in batches])
    assert exploration.recovery_steps(graph, ctx) == 100
    step = 3 * 16 * (32 * 64 + 64 * 64 + 64 * 8)  # multiply-accumulates of a batch of 16, forward and backward
    for work, steps in ((40 * step, 40), (20 * step, 20), (19.9 * step, 0)):
        monkeypatch.setattr(exploration, "_WORK", work)
        assert exploration.recovery_steps(graph, ctx) == steps
    assert exploration.recovery_steps(graph, graphc.PassContext()) == 0, "there is nothing to learn from"
