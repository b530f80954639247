"""The substitution itself: exact where a kernel has rank one, better from the SVD than at random, cheapest first."""

import pytest
import torch
from torch import nn

import graphc
from graphc.errors import CalibrationError
from graphc.passes.separate_convolutions import SeparateConvolutions, separate
from graphc.pipeline import PassContext


def _graph():
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3)
    )
    graph = graphc.trace(model.eval(), (torch.randn(2, 3, 8, 8),))
    return graph, PassContext(calibration=[[torch.randn(2, 3, 8, 8)] for _ in range(2)])


def test_kernels_of_rank_one_lose_nothing():
    graph, _ = _graph()
    taps, mix = torch.randn(1, 16, 3, 3), torch.randn(16, 16, 1, 1)
    graph.weights["2.weight"] = taps * mix
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(separate(graph, _names(graph, "2")).run(x), graph.run(x))


def _names(graph, path):
    return [node.name for node in graph.calls if node.meta["path"] == path]


def test_the_svd_begins_nearer_than_random_factors():
    graph, ctx = _graph()
    best = SeparateConvolutions().positions(graph, ctx)
    for seed in range(3):
        chance = SeparateConvolutions(initial="random").positions(
            graph, PassContext(calibration=ctx.calibration, seed=seed)
        )
        assert all(one.error < other.error for one, other in zip(best, chance, strict=True))


def test_the_cheapest_for_what_it_saves_goes_first():
    graph, ctx = _graph()
    positions = SeparateConvolutions().positions(graph, ctx)
    assert [position.saved for position in positions] == [3 * (144 - 25), 16 * (144 - 25), 16 * (72 - 17)]
    first = min(positions, key=lambda position: position.error / position.saved)
    bound = first.error * 1.001
    result = SeparateConvolutions(error=bound).run(graph, ctx)
    assert first.path in {node.meta["path"] for node in result.calls if node.name.endswith("_depthwise")}
    change = sum(float((result.run(x) - graph.run(x)).square().sum()) for (x,) in ctx.calibration)
    assert change <= 1.0001 * bound * sum(float(graph.run(x).square().sum()) for (x,) in ctx.calibration)
    everything = SeparateConvolutions(error=1e9).run(graph, ctx)
    assert sum(node.name.endswith("_depthwise") for node in everything.calls) == 3
    assert graphc.dump(SeparateConvolutions(error=1e9).run(graph, ctx)) == graphc.dump(everything)


def test_data_are_needed():
    with pytest.raises(CalibrationError, match="separate_convolutions needs calibration data"):
        SeparateConvolutions().run(_graph()[0], PassContext())
