"""3x3 convolutions by minimal filtering."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphc.backends.tvm import lower
from graphc.backends.tvm.templates import winograd
from graphc.frontends import trace
from graphc.pipeline import PassContext, pipeline
from graphc.target import Target

TARGETS = ["host", "x86-64:v2", "x86-64:v3", "arm64"]


class Network(nn.Module):
    """A padded chain with a residual sum, and a layer without padding or bias, on images that 4 or only 2 divides."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(32, 64, 3, padding=1)
        self.second = nn.Conv2d(64, 32, 3, padding=1)
        self.bare = nn.Conv2d(32, 96, 3, bias=False)

    def forward(self, x):
        y = F.relu(x + self.second(F.relu(self.first(x))))
        return y, self.bare(y)


def lowered(model, x, **keywords):
    return pipeline("float").run(trace(model.eval(), (x,), **keywords), PassContext(), ())


def templates(graph, target="host"):
    steps = lower(graph, Target.parse(target)).plan["steps"]
    return [step["template"] for step in steps if "convolution" in step["template"]]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("height", "width"), [(16, 20), (18, 14)])
def test_equals_the_definition(check, monkeypatch, height, width, fused, target):
    if not fused:
        monkeypatch.setattr(winograd, "RESIDENT_BYTES", 0)
    x = torch.randn(2, 32, height, width)
    graph = lowered(Network(), x)
    assert templates(graph, target) == [winograd.NAME] * 3
    check(graph, [x], target=target, atol=2e-5)


def test_error_is_that_of_rounding(compiled):
    torch.manual_seed(0)
    model, x = nn.Conv2d(256, 64, 3, padding=1), torch.randn(1, 256, 16, 16)
    got = torch.as_tensor(compiled(lowered(model, x)).run(x))
    exact = model.double()(x.double())
    assert ((got - exact).abs().max() / exact.abs().max()).item() < 3e-5


@pytest.mark.parametrize("fused", [True, False])
def test_batches_of_dynamic_size(check, monkeypatch, fused):
    if not fused:
        monkeypatch.setattr(winograd, "RESIDENT_BYTES", 0)
    batch = torch.export.Dim("batch", min=1, max=5)
    graph = lowered(Network(), torch.randn(2, 32, 16, 16), dynamic_shapes=({0: batch},))
    assert templates(graph) == [winograd.NAME] * 3
    check(graph, *([torch.randn(n, 32, 16, 16)] for n in (1, 3, 5)), atol=2e-5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(32, 64, 3, padding=1, stride=2), (1, 32, 32, 32)),
        (nn.Conv2d(32, 64, 3, padding=2, dilation=2), (1, 32, 32, 32)),
        (nn.Conv2d(64, 64, 3, padding=1, groups=2), (1, 64, 32, 32)),
        (nn.Conv2d(32, 64, 5, padding=2), (1, 32, 32, 32)),
        (nn.ConvTranspose2d(32, 64, 3, padding=1), (1, 32, 32, 32)),
        (nn.Conv2d(32, 64, 3, padding=1), (1, 32, 31, 32)),
        (nn.Conv2d(32, 64, 3, padding=1), (1, 32, 6, 6)),
        (nn.Conv2d(16, 64, 3, padding=1), (1, 16, 32, 32)),
        (nn.Conv2d(32, 40, 3, padding=1), (1, 32, 32, 32)),
    ],
)
def test_leaves_other_layers_alone(layer, shape):
    assert templates(lowered(layer, torch.randn(shape)), "x86-64:vnni") == ["convolution"]


def test_filters_are_stored_as_they_were():
    x = torch.randn(1, 32, 16, 16)
    program = lower(lowered(nn.Conv2d(32, 64, 3, padding=1), x), Target.parse("host"))
    assert len(program.weights) < 1.1 * 4 * 32 * 64 * 9
    assert program.plan["state_bytes"] == 4 * 32 * 64 * 36
