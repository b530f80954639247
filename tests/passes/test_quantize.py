"""What quantization does to numbers: scales, zero points, bias correction, and how calibration methods compare."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphc.frontends import trace
from graphc.graph import Graph
from graphc.passes.quantize import Quantize
from graphc.pipeline import PRESETS, PassContext, Pipeline
from graphc.quantized_weight import weight_scale


def quantized(model: nn.Module, batches: list[torch.Tensor], **options) -> Graph:
    graph = trace(model, (batches[0],))
    return Quantize(**options).run(graph, PassContext(calibration=[[batch] for batch in batches]))


def layer(kind: str) -> tuple[nn.Module, list[torch.Tensor], list[int]]:
    """A layer all of whose weights are rounded down, its inputs, and the axes but that of its channels."""
    if kind == "linear":
        model, shape, axes = nn.Linear(16, 4), (5, 3, 16), [0, 1]
    else:
        model, shape, axes = nn.Conv2d(4, 4, 3, padding=1, groups=2), (5, 4, 6, 6), [0, 2, 3]
    with torch.no_grad():
        steps = torch.randint(-100, 100, model.weight.shape) + 0.4
        steps.flatten(1)[:, 0] = 127  # the scale is 0.01
        model.weight.copy_(steps * 0.01)
    return model, [torch.rand(shape) + 1 for _ in range(6)], axes


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_bias_correction_takes_the_mean_error_away(kind):
    model, batches, axes = layer(kind)

    def mean_error(**options) -> torch.Tensor:
        graph = quantized(model, batches, calibration="minmax", **options)
        with torch.no_grad():
            errors = torch.stack([graph.run(batch) - model(batch) for batch in batches])
        return errors.mean([0, *(axis + 1 for axis in axes)]).abs()

    without = mean_error(bias_correction=False)
    assert without.min() > 0.01  # all weights were rounded down
    assert (mean_error() < without / 10).all()


def test_a_layer_without_bias_gets_the_correction_as_its_bias():
    model = nn.Linear(8, 4, bias=False)
    graph = quantized(model, [torch.rand(2, 8)])
    assert graph.weights["weight.bias.corrected"].shape == (4,)
    assert "weight.bias.corrected" not in quantized(model, [torch.rand(2, 8)], bias_correction=False).weights


def test_scales_of_weights():
    weight = torch.tensor([[1.27, -0.5], [-2.54, 0.0], [0.0, 0.0], [1e-45, -1e-45]])
    assert weight_scale(weight).tolist() == pytest.approx([0.01, 0.02, 1.0, 1.0])  # 1e-45 / 127 is nought in f32
    least = torch.tensor([0.0, 0.5, 0.25, 0.125])
    assert weight_scale(weight, 8, least).tolist() == pytest.approx([0.01, 0.5, 0.25, 0.125])


def test_nought_is_exact_and_the_interval_is_spanned():
    for low, high in ((-1.0, 3.0), (0.0, 6.0), (-5.0, 0.0), (2.0, 3.0), (-3.0, -2.0)):
        x = torch.linspace(low, high, 100)[None]
        graph = quantized(nn.Linear(100, 2), [x], calibration="minmax")
        (quantize,) = (node for node in graph.calls if "graphc.quantize" in str(node.target))
        scale, zero = float(graph.weight(quantize.args[1])), int(graph.weight(quantize.args[2]))
        assert -128 <= zero <= 127
        span = max(high, 0) - min(low, 0)
        assert scale == pytest.approx(span / 255, rel=1e-5)
        assert (-128 - zero) * scale == pytest.approx(min(low, 0), abs=scale / 2 + 1e-6)
        assert (127 - zero) * scale == pytest.approx(max(high, 0), abs=scale / 2 + 1e-6)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_every_method_keeps_a_network(method, network, relative_error):
    known = network("residual")
    ctx = PassContext(calibration=known.calibration)
    graph = Pipeline(PRESETS["int8"].replace("quantize", f"quantize{{calibration={method}}}", 1)).run(known.graph, ctx)
    for batch in known.calibration:
        assert relative_error(known.graph.run_flat(batch), graph.run_flat(batch)) < 0.1
    operators = {str(node.target) for node in graph.calls}
    assert "aten.convolution.default" not in operators
    assert {"graphc.integer_convolution.default", "graphc.integer_linear.default"} <= operators


def test_a_batch_of_zeros_among_the_data_changes_nothing(network):
    """Ranges are over all batches; a blank image does not shrink them."""
    known = network("residual")
    blank = [torch.zeros_like(leaf) for leaf in known.calibration[0]]
    low_high = [
        Quantize(calibration="minmax", bias_correction=False).run(known.graph, PassContext(calibration=batches)).weights
        for batches in (known.calibration, [blank, *known.calibration])
    ]
    for name, tensor in low_high[0].items():
        if name.endswith(".scale") and tensor.numel() == 1:
            assert low_high[1][name] >= tensor
