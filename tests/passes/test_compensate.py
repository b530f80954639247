"""Compensation by sensitivity: more of the same bytes where the outputs feel it, and a smaller divergence for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphc
from graphc import formats
from graphc.analysis.outputs import change
from graphc.errors import CalibrationError, PassError
from graphc.passes.compensate import Compensate
from graphc.pipeline import PassContext


class Unequal(nn.Module):
    """Two branches, of which the second hardly counts."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet = nn.Linear(64, 48), nn.Linear(64, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.loud(x) + 0.1 * self.quiet(x)


@pytest.fixture(scope="module")
def graph() -> graphc.Graph:
    torch.manual_seed(0)
    return graphc.trace(Unequal().eval(), (torch.zeros(32, 64),))


@pytest.fixture(scope="module")
def batches() -> list[list[torch.Tensor]]:
    """Inputs with a few strong directions: calibration, and a held-back batch."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(64, 64, generator=generator) * torch.arange(1.0, 65) ** -1
    return [[torch.randn(32, 64, generator=generator) @ mix.t()] for _ in range(5)]


def test_ranks_go_where_the_outputs_feel_them(graph, batches):
    ctx, held_back = PassContext(calibration=batches[:4]), batches[4:]
    plain = graphc.Pipeline('compress{format="linear(bits=2,group=32)"}').run(graph)
    even, chosen = (
        Compensate("linear(bits=2,group=32)", rank=4, sensitivity=way).run(graph, ctx) for way in ("none", "noise")
    )
    sizes = [sum(tensor.nbytes for tensor in result.weights.values()) for result in (plain, even, chosen)]
    assert sizes[0] < sizes[2] <= sizes[1] == sizes[0] + 2 * (4 * (64 + 48) + 2 * (48 + 4))
    noise = [change(graph, result, held_back).noise for result in (plain, even, chosen)]
    assert noise[2] < 0.8 * noise[1] < 0.64 * noise[0]
    ranks = {}
    for node in chosen.calls:
        if node.target is torch.ops.aten.linear.default:
            ranks[node.meta["path"]] = str(formats.recognize(node.args[1]).format)
    assert "low_rank" in ranks["loud"]
    assert ranks["quiet"] == "linear(bits=2,group=32)"


def test_what_is_illegal(graph, batches):
    with pytest.raises(PassError, match="rank=0 must be a number from 1"):
        Compensate(rank=0).run(graph, PassContext(calibration=batches))
    with pytest.raises(CalibrationError, match="calibration data"):
        Compensate().run(graph, PassContext())
