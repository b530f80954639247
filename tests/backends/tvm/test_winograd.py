"""3x3 convolutions by minimal filtering."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphc.backends.tvm import lower
from graphc.backends.tvm.templates import winograd
from graphc.frontends import trace
from graphc.graph import Graph
from graphc.pipeline import PassContext, pipeline
from graphc.structure import Structure
from graphc.target import Target
from graphc.tensor_type import TensorType

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


def integer_layer(x, weight, zero, bias=None):
    """A graph of one integer convolution of an image of x's type and shape."""
    graph = Graph("layer", Structure.of(((0,), {})), Structure.of(0))
    image = graph.add_input("x", TensorType.of(x))
    stored = graph.add_weight("w", weight)
    offset = None if bias is None else graph.add_weight("b", bias)
    geometry = [[1, 1], [1, 1], [1, 1], 1]
    node = graph.call(torch.ops.graphc.integer_convolution.default, image, stored, offset, zero, *geometry)
    graph.set_output([node])
    return graph


def integers(low, high, *shape, dtype=torch.int8):
    return torch.randint(low, high + 1, shape, dtype=dtype)


BIAS = integers(-999, 999, 64, dtype=torch.int32)
INTEGER_LAYERS = {
    "typical": (integers(-128, 127, 2, 64, 16, 20), integers(-60, 60, 64, 64, 3, 3), -128, BIAS),
    "unsigned": (integers(0, 255, 1, 32, 16, 16, dtype=torch.uint8), integers(-127, 127, 32, 32, 3, 3), 7, None),
    # Sums of products leave int32 many times over here, results do not.
    "extreme": (integers(0, 1, 1, 64, 16, 16) * 255 - 128, integers(0, 1, 32, 64, 3, 3) * 254 - 127, -128, None),
    "largest": (integers(127, 127, 1, 96, 16, 16), integers(127, 127, 32, 96, 3, 3), -128, None),
}  # fmt: skip


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", INTEGER_LAYERS)
def test_integers_are_equal(check, monkeypatch, name, fused):
    if not fused:
        monkeypatch.setattr(winograd, "RESIDENT_BYTES", 0)
    x, weight, zero, bias = INTEGER_LAYERS[name]
    graph = integer_layer(x, weight, zero, bias)
    assert templates(graph, "x86-64:vnni") == [winograd.NAME]
    check(graph, [x], target="x86-64:vnni")


def test_integers_that_could_leave_their_range_are_convolved_as_defined(check):
    x, weight = integers(-128, 127, 1, 128, 16, 16), torch.full((32, 128, 3, 3), 127, dtype=torch.int8)
    graph = integer_layer(x, weight, -128)
    assert templates(graph, "x86-64:vnni") == ["convolution"]
    check(graph, [x], target="x86-64:vnni")


@pytest.mark.parametrize("target", ["x86-64:v3", "arm64"])
def test_integers_gain_nothing_without_a_dot_product_of_words(target):
    x, weight, zero, _ = INTEGER_LAYERS["typical"]
    assert templates(integer_layer(x, weight, zero), target) == ["convolution"]
