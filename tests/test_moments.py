"""Second moments: the mean squared error of a layer's output is their quadratic form, for every geometry."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphc
from graphc.errors import CalibrationError
from graphc.moments import loss, second_moments
from graphc.pipeline import PassContext, Pipeline

LAYERS = {
    "linear": (nn.Linear(6, 5), (3, 4, 6)),
    "pointwise": (nn.Conv2d(6, 4, 1), (2, 6, 5, 4)),
    "strided": (nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 2), (1, 2)), (2, 3, 9, 8)),
    "one dimension": (nn.Conv1d(3, 4, 3, 2, 1), (2, 3, 9)),
    "three dimensions": (nn.Conv3d(2, 4, 2), (1, 2, 4, 3, 5)),
    "one image": (nn.Conv2d(3, 4, 3, padding="same"), (3, 6, 5)),
}


def layers_of(graph):
    kinds = (torch.ops.aten.linear.default, torch.ops.aten.convolution.default)
    return [node for node in graph.calls if node.target in kinds]


@pytest.mark.parametrize("name", LAYERS)
def test_the_form_is_the_squared_error_of_the_output(name):
    layer, shape = LAYERS[name]
    batches = [[torch.randn(shape)] for _ in range(3)]
    graph = graphc.trace(layer.eval(), tuple(batches[0]))
    (node,) = layers_of(graph)
    moments = second_moments(graph, [node], PassContext(calibration=batches))[node]
    error = torch.randn_like(layer.weight)
    layer.bias.data.zero_()
    layer.weight.data = error
    with torch.no_grad():
        lost = torch.stack([layer(x) for (x,) in batches])
    channels = lost.shape[-1] if name == "linear" else 4
    assert moments.dtype == torch.float64
    expected = float(lost.square().sum()) / (lost.numel() / channels)
    assert loss(error.flatten(1), moments) == pytest.approx(expected, rel=1e-5)
    assert loss(error, None) == pytest.approx(float(error.square().sum()), rel=1e-5)


def test_a_grouped_convolution_has_the_mean_of_its_groups():
    x = torch.randn(2, 6, 5, 5)
    graph = graphc.trace(nn.Conv2d(6, 6, 3, groups=3).eval(), (x,))
    (node,) = layers_of(graph)
    moments = second_moments(graph, [node], PassContext(calibration=[[x]]))[node]
    parts = []
    for part in x.split(2, 1):
        alone = graphc.trace(nn.Conv2d(2, 6, 3).eval(), (part,))
        parts += second_moments(alone, layers_of(alone), PassContext(calibration=[[part]])).values()
    torch.testing.assert_close(moments, torch.stack(parts).mean(0))


def test_layers_of_one_input_share_and_transposed_ones_are_left_out():
    class Three(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1), nn.ConvTranspose2d(3, 2, 1)

        def forward(self, x):
            return self.a(x), self.b(x), self.c(x)

    x = torch.randn(1, 3, 4, 4)
    graph = graphc.trace(Three().eval(), (x,))
    found = second_moments(graph, layers_of(graph), PassContext(calibration=[[x]]))
    first, second = found.values()
    assert first is second


def test_there_must_be_finite_data():
    x = torch.randn(2, 6)
    graph = graphc.trace(nn.Sequential(nn.Linear(6, 5)).eval(), (x,))
    with pytest.raises(CalibrationError, match="need calibration data"):
        second_moments(graph, layers_of(graph), PassContext())
    with pytest.raises(CalibrationError, match="layer '0' is NaN or infinite"):
        second_moments(graph, layers_of(graph), PassContext(calibration=[[x * torch.inf]]))
    with pytest.raises(CalibrationError, match="need calibration data"):
        Pipeline("compress{data=true}").run(graph)
