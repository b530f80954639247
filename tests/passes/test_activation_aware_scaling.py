"""What scales from activations save of a rounded layer's output, where they go, and why some layers have none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphc
from graphc.errors import CalibrationError, PassError
from graphc.passes.activation_aware_scaling import ActivationAwareScaling
from graphc.passes.compress import Compress
from graphc.pipeline import CLEAN, PassContext, Pipeline
from graphc.tools.zoo.llama import Llama

FORMAT = "linear(bits=3,group=16)"


@pytest.fixture(scope="module")
def salient():
    """A normalization whose scales make four of 32 channels thirty times as large as the others."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 8)).eval()
    model[0].weight.data[::8] = 30
    batches = [[torch.randn(64, 32)] for _ in range(3)]
    return Pipeline(CLEAN).run(graphc.trace(model, (batches[0][0],))), PassContext(calibration=batches)


def lost(graph, ctx, scaled) -> float:
    compressed = Compress(FORMAT, ("1",)).run(scaled, ctx)
    x = torch.randn(256, 32, generator=torch.Generator().manual_seed(1))
    expected, given = (each.run_flat([x[:64]])[0] for each in (graph, compressed))
    return float((given - expected).square().mean() / expected.square().mean())


def test_salient_channels_keep_their_precision(salient):
    graph, ctx = salient
    scaled = ActivationAwareScaling(FORMAT, ("1",)).run(graph, ctx)
    assert lost(graph, ctx, scaled) < 0.5 * lost(graph, ctx, graph)
    coarse = ActivationAwareScaling(FORMAT, ("1",), steps=1).run(graph, ctx)
    assert lost(graph, ctx, scaled) < lost(graph, ctx, coarse)


def test_no_operator_is_added(salient):
    graph, ctx = salient
    scaled = ActivationAwareScaling("linear(bits=3)").run(graph, ctx)
    assert [node.target for node in scaled.calls] == [node.target for node in graph.calls]
    assert {name for name in scaled.weights if name not in graph.weights} == {
        "0.weight.scaled", "0.bias.scaled", "1.weight.scaled.scaled", "1.bias.scaled", "3.weight.scaled"
    }  # fmt: skip


def test_a_llama_is_scaled_everywhere_but_at_the_tied_head():
    torch.manual_seed(0)
    model = Llama(vocabulary=11, dim=32, hidden=20, context=8, layers=1, heads=4, kv_heads=2).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 2)
    graph = Pipeline(CLEAN).run(graphc.trace(model, (torch.zeros(2, 8, dtype=torch.int64),)))
    item = ActivationAwareScaling()
    assert list(item.reasons(graph)) == [""]
    assert item.reasons(graph)[""] == "its weight is read by embedding too"
    batches = [[torch.randint(11, (2, 8))] for _ in range(4)]
    found = ActivationAwareScaling("linear(bits=2)").run(graph, PassContext(calibration=batches))
    scaled = {name.partition(".scaled")[0] for name in found.weights if name.endswith(".scaled")}
    assert {f"layers.0.{name}.weight" for name in ("attn_norm", "wq", "ffn_norm", "w3", "w2")} <= scaled
    torch.testing.assert_close(found.run(batches[0][0]), graph.run(batches[0][0]), rtol=1e-4, atol=1e-5)


def test_why_layers_are_left():
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.one, self.two, self.three = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x)
            return self.one(x) + y + self.two(y) + self.three(self.two(y).sigmoid() * self.one(x).tanh())

    graph = Pipeline(CLEAN).run(graphc.trace(Left().eval(), (torch.randn(2, 8),)))
    reasons = ActivationAwareScaling().reasons(graph)
    assert reasons["one"] == "%x is an input"
    assert "is read by %add" in reasons["two"]
    assert "made by aten.tanh" in reasons["three"] and "made by aten.sigmoid" in reasons["three"]


def test_what_cannot_be_is_said(salient):
    graph, ctx = salient
    with pytest.raises(PassError, match="steps=0"):
        ActivationAwareScaling(steps=0).run(graph, ctx)
    with pytest.raises(CalibrationError, match="calibration data"):
        ActivationAwareScaling().run(graph, PassContext())
