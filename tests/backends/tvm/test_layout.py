"""Where values lie: images with their padding around them, bytes as the instruction reads them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from graphc.backends.tvm import lower
from graphc.frontends import trace
from graphc.graph import Graph
from graphc.pipeline import PassContext, pipeline
from graphc.structure import Structure
from graphc.target import Target
from graphc.tensor_type import TensorType

graphc_ops = torch.ops.graphc
SCALE = {"multiplier": 1 << 30, "shift": 41}  # by 2^-11
X = torch.randn(2, 8, 9, 7)


class Readers(nn.Module):
    """One image, and every way to read it: paddings of all sizes, strides, dilation, groups, a pool, a view, a sum."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, channels, 1)
        self.same = nn.Conv2d(channels, channels, 3, padding=1)
        self.strided = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(channels, 5, (1, 5), padding=(0, 2))
        self.dilated = nn.Conv2d(channels, 4, 3, padding=2, dilation=2)
        self.grouped = nn.Conv2d(channels, channels, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.plain = nn.Conv2d(channels, 3, 2, stride=2)
        self.joined = nn.Conv2d(2 * channels, 4, 3, padding=1)
        self.spread = nn.ConvTranspose2d(channels, 4, 3, stride=2, padding=1)

    def forward(self, x):
        x = F.relu(self.first(x))
        layers = (self.strided, self.wide, self.dilated, self.grouped, self.depthwise, self.plain, self.spread)
        both = self.joined(torch.cat([x, self.same(x)], 1))
        pool = F.max_pool2d(x, 3, 2, padding=1)
        return (*(layer(x) for layer in layers), both, x + self.same(x), pool, x.flatten(2).mean(2), x[:, 1:, ::2])


def lowered(model, x, preset):
    context = PassContext(calibration=[(x,)]) if preset == "int8" else PassContext()
    return pipeline(preset).run(trace(model.eval(), (x,)), context, ())


@pytest.mark.parametrize("target", ["host", "x86-64:v2", "x86-64:v3", "arm64"])
@pytest.mark.parametrize("preset", ["float", "int8"])
@pytest.mark.parametrize("channels", [8, 6])
def test_every_reader_of_an_image_finds_its_padding(check, channels, preset, target):
    graph = lowered(Readers(channels), X, preset)
    check(graph, [X], [torch.randn_like(X) * 3], target=target, atol=3e-5)


@pytest.mark.parametrize("zero_point", [0, -128, 5])
def test_an_image_is_padded_by_its_zero_point(check, zero_point):
    """Whatever it is, and as the layer's instruction reads it: as it is, or 128 more."""
    graph = Graph("chain", Structure.of(((0,), {})), Structure.of(0))
    x = graph.add_input("x", TensorType((1, 8, 5, 7), torch.int8))
    w = graph.add_weight("w", torch.randint(-128, 128, (8, 8, 3, 3), dtype=torch.int8))
    geometry = [1, 1], [1, 1], [1, 1], 1
    scales = [graph.add_weight(name, torch.full((8,), value, dtype=torch.int32)) for name, value in SCALE.items()]
    sums = graph.call(graphc_ops.integer_convolution.default, x, w, None, zero_point, *geometry)
    inner = graph.call(graphc_ops.rescale.default, sums, *scales, 0, zero_point, 1, -128, 127)
    graph.set_output([graph.call(graphc_ops.integer_convolution.default, inner, w, None, zero_point, *geometry)])
    for target in ("host", "x86-64:v3"):
        check(graph, [torch.randint(-128, 128, (1, 8, 5, 7), dtype=torch.int8)], target=target)


@pytest.mark.parametrize("preset", ["float", "int8"])
@pytest.mark.parametrize("padding", [1, (0, 2), "same"])
def test_chains_of_convolutions_copy_no_image(preset, padding):
    model = nn.Sequential(*(nn.Conv2d(8, 8, 3, padding=padding) for _ in range(3)))
    steps = lower(lowered(model, X, preset), Target.parse("x86-64:vnni")).plan["steps"]
    layers = [step for step in steps if step["template"] == "convolution"]
    copies = [any("workspace" in operand for operand in step["operands"]) for step in layers]
    assert copies[1:] == [False, False]


def test_an_image_of_dynamic_size_is_padded_by_its_reader(check):
    model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)).eval()
    height = torch.export.Dim("height", min=3, max=20)
    graph = pipeline("float").run(trace(model, (X,), dynamic_shapes=({2: height},)), PassContext(), ())
    check(graph, [X], [X[:, :, :3]], [torch.randn(2, 8, 20, 7)], atol=3e-5)


def test_attention_writes_where_the_next_layer_reads():
    """Heads are views of one tensor, and their results lie side by side again: no step moves them."""

    class Heads(nn.Module):
        def forward(self, x):
            q = x.view(1, 9, 4, 8).transpose(1, 2)
            return F.scaled_dot_product_attention(q, q, q).transpose(1, 2).flatten(2) * 2

    steps = lower(lowered(Heads(), torch.randn(1, 9, 32), "float"), Target.parse("host")).plan["steps"]
    assert [step["template"] for step in steps] == ["attention", "elementwise"]
