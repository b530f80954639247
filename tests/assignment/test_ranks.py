"""Ranks of compensation by sensitivity, on a network of which one layer matters far more than the other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphc
from graphc.analysis.outputs import change
from graphc.assignment.ranks import allocated, compensation
from graphc.errors import BudgetError, CalibrationError, FormatError
from graphc.passes.compress import Compress
from graphc.pipeline import CLEAN, PassContext, Pipeline

BASE = "linear(bits=2)"


class Unequal(nn.Module):
    """Both layers see the same input; what the second makes of it is a thousandth of the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.faint = nn.Linear(32, 24), nn.Linear(32, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 4 * self.loud(x) + 0.001 * self.faint(x)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    mixing = torch.randn(32, 32) * torch.logspace(0, -2, 32)
    batches = [[torch.randn(16, 32) @ mixing.t()] for _ in range(3)]
    graph = Pipeline(CLEAN).run(graphc.trace(Unequal().eval(), (batches[0][0],)))
    return graph, PassContext(calibration=batches)


def weights(graph) -> int:
    """Bytes without the biases."""
    return sum(weight.nbytes for name, weight in graph.weights.items() if not name.endswith("bias"))


def test_the_bytes_go_where_they_count(network):
    graph, ctx = network
    uniform = Compress(compensation(BASE, 2), data=True).run(graph, ctx)
    passes = allocated(graph, [BASE], ctx, weights(uniform), ranks=(0, 1, 2, 3, 4))
    ranks = {path: item.format for item in passes.passes for path in item.layers}
    assert ranks == {"loud": compensation(BASE, 4), "faint": BASE}
    assert str(allocated(graph, [BASE], ctx, weights(uniform), ranks=(0, 1, 2, 3, 4))) == str(passes)
    found = passes.run(graph, ctx)
    assert weights(found) <= weights(uniform)
    assert change(graph, found, ctx.calibration).kl < 0.8 * change(graph, uniform, ctx.calibration).kl


def test_what_cannot_be_is_said(network):
    graph, ctx = network
    with pytest.raises(BudgetError, match="least that there is"):
        allocated(graph, [BASE], ctx, 100)
    with pytest.raises(FormatError, match="unknown sensitivity 'gut'; known: kl"):
        allocated(graph, [BASE], ctx, 10_000, sensitivity="gut")
    with pytest.raises(CalibrationError):
        allocated(graph, [BASE], PassContext(), 10_000)
