"""Each sensitivity against what it estimates, computed in another way."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import graphc
from graphc.analysis import SENSITIVITIES, gradients, hessian, outputs
from graphc.analysis.candidates import FLOAT, Candidate, Candidates, candidates
from graphc.analysis.divergence import divergence, random_gradients
from graphc.errors import BudgetError, CalibrationError
from graphc.graph import Graph
from graphc.pipeline import PassContext


def quadratic(graph: Graph, found: Candidates, ctx: PassContext, key: tuple[str, str]) -> float:
    """1/2 E^T H E of the divergence at the float weights, by torch's own second derivatives along E."""

    def at(step: torch.Tensor, batch: list[torch.Tensor]) -> torch.Tensor:
        moved = graph.clone()
        for name, weight in found[key].weights.items():
            moved.weights[name] = graph.weights[name] + step * (weight - graph.weights[name])
        return divergence(graph.run_flat(batch), moved.run_flat(batch))

    total = 0.0
    for batch in ctx.calibration:
        total += (
            float(torch.autograd.functional.hessian(lambda step, batch=batch: at(step, list(batch)), torch.zeros(())))
            / 2
        )
    return total / len(ctx.calibration)


def test_fisher_scores_estimate_the_quadratic_form(graph: Graph, found: Candidates, ctx: PassContext) -> None:
    made = gradients.scores(graph, found, ctx, draws=2000)
    for key in (("0", "linear(bits=2)"), ("3", "vector(d=2,codewords=16)"), ("6", "linear(bits=4)")):
        assert made[key].fisher == pytest.approx(quadratic(graph, found, ctx, key), rel=0.2)
        assert made[key].taylor > 0
    assert made["0", FLOAT] == gradients.Score(0.0, 0.0)


def test_random_gradients_have_the_hessian_as_covariance() -> None:
    outputs = torch.tensor([[1.0, -0.5, 0.3]])
    generator = torch.Generator().manual_seed(0)
    drawn = torch.cat([random_gradients([outputs], generator)[0] for _ in range(4000)])
    wanted = torch.autograd.functional.hessian(lambda y: divergence([outputs], [y[None]]), outputs[0])
    torch.testing.assert_close(drawn.t() @ drawn / len(drawn), wanted, atol=0.02, rtol=0)


def test_one_channel_and_images_have_divergences_of_their_own() -> None:
    image, one = torch.randn(2, 5, 3, 3), torch.randn(2, 1)
    expected = torch.nn.functional.kl_div(
        (image * 2).log_softmax(1), image.log_softmax(1), log_target=True, reduction="none"
    )
    torch.testing.assert_close(divergence([image], [image * 2]), expected.sum(1).mean())
    torch.testing.assert_close(divergence([one], [one * 2]), torch.tensor(0.5))


def test_outputs_are_measured(graph: Graph, found: Candidates, ctx: PassContext) -> None:
    made = outputs.changes(graph, found, ctx)
    assert made["3", FLOAT].kl == 0 and made["3", FLOAT].sqnr == math.inf
    assert made["3", "linear"].sqnr > made["3", "linear(bits=4)"].sqnr > made["3", "linear(bits=2)"].sqnr
    assert 0 < made["3", "linear"].kl < made["3", "linear(bits=4)"].kl < made["3", "linear(bits=2)"].kl
    other = outputs.replaced(graph, found["3", "linear(bits=2)"])
    assert outputs.change(graph, other, ctx.calibration) == made["3", "linear(bits=2)"]
    broken = {name: weight * math.nan for name, weight in found["3", FLOAT].weights.items()}
    assert outputs.change(graph, outputs.replaced(graph, Candidate(0, broken)), ctx.calibration).kl == math.inf


def test_traces_are_those_of_the_hessian(ctx: PassContext) -> None:
    torch.manual_seed(0)
    graph = graphc.trace(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)), (torch.zeros(5, 6),))
    small = PassContext(calibration=[[torch.randn(5, 6)]])
    (name,) = (name for name, weight in graph.weights.items() if weight.shape == (4, 6))

    def loss(weight: torch.Tensor) -> torch.Tensor:
        moved = graph.clone()
        moved.weights[name] = weight
        return divergence(graph.run_flat(small.calibration[0]), moved.run_flat(small.calibration[0]))

    exact = torch.autograd.functional.hessian(loss, graph.weights[name]).reshape(24, 24).trace()
    made = hessian.traces(graph, [name], small, probes=1000)
    assert made[name] == pytest.approx(float(exact), rel=0.1)
    found = candidates(graph, ("linear(bits=4)",), small)
    score = hessian.scores(graph, found, small)
    assert score["0", FLOAT] == 0 and score["0", "linear(bits=4)"] > 0


def test_attention_has_second_derivatives() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.queries = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(self.queries(x), x, x)

    graph = graphc.trace(Attention(), (torch.randn(1, 1, 4, 8),))
    small = PassContext(calibration=[[torch.randn(1, 1, 4, 8)]])
    assert all(math.isfinite(value) for value in hessian.traces(graph, list(graph.weights)[:1], small).values())


def agreement(run) -> float:  # type: ignore[no-untyped-def]
    """Of the outputs' signs with those of fixed numbers; at the top of the module, so that it travels."""
    generator = torch.Generator().manual_seed(2)
    return float(np.mean(run(torch.randn(4, 3, 8, 8, generator=generator)) > 0))


def test_the_metric_is_measured_with_each_candidate(graph: Graph, found: Candidates, ctx: PassContext) -> None:
    drops = SENSITIVITIES["metric"](graph, found, replace(ctx, metric=agreement))
    assert drops["0", FLOAT] == 0
    other = outputs.replaced(graph, found["3", "linear(bits=2)"])
    with torch.no_grad():
        values = [agreement(lambda x, run=g.run: run(x).numpy()) for g in (graph, other)]
    assert drops["3", "linear(bits=2)"] == values[0] - values[1]
    with pytest.raises(BudgetError, match="needs metric="):
        SENSITIVITIES["metric"](graph, found, ctx)


@pytest.mark.parametrize("name", sorted(SENSITIVITIES))
def test_threads_give_the_same_scores(graph: Graph, found: Candidates, ctx: PassContext, name: str) -> None:
    ctx = replace(ctx, metric=agreement)
    here = SENSITIVITIES[name](graph, found, ctx)
    assert set(here) == set(found)
    with ThreadPoolExecutor(2) as executor:
        assert SENSITIVITIES[name](graph, found, replace(ctx, executor=executor)) == here


def test_a_dask_cluster_gives_the_same_scores(graph: Graph, found: Candidates, ctx: PassContext) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        spread = gradients.scores(graph, found, replace(ctx, executor=client.get_executor()))
    assert spread == gradients.scores(graph, found, ctx)


def test_gradients_need_data_and_an_output_that_depends_on_layers(graph: Graph, found: Candidates) -> None:
    with pytest.raises(CalibrationError, match="calibration data"):
        gradients.scores(graph, found, PassContext())
    with pytest.raises(CalibrationError, match="calibration data"):
        hessian.scores(graph, found, PassContext())
