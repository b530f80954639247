"""Models that were quantized elsewhere come in as quantized: PyTorch's PT2E operators."""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed  # registers the operators of PT2E
import torch.nn.functional as F
from torch import nn

from graphc.frontends import trace
from graphc.pipeline import PRESETS, Pipeline

decomposed = torch.ops.quantized_decomposed
X = torch.randn(2, 3)


class Quantized(nn.Module):
    """What PT2E's conversion leaves: weights in int8, activations quantized and dequantized between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-127, 128, (4, 3), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(4) * 0.01 + 0.001)
        self.register_buffer("zeros", torch.zeros(4, dtype=torch.int64))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x):
        x = decomposed.quantize_per_tensor(x, 0.02, -3, -128, 127, torch.int8)
        x = decomposed.dequantize_per_tensor(x, 0.02, -3, -128, 127, torch.int8)
        w = decomposed.dequantize_per_channel(self.weight, self.scales, self.zeros, 0, -127, 127, torch.int8)
        y = F.relu(F.linear(x, w, self.bias))
        y = decomposed.quantize_per_tensor(y, 0.03, -128, -128, 127, torch.int8)
        return decomposed.dequantize_per_tensor(y, 0.03, -128, -128, 127, torch.int8)


def test_quantized_models_come_in_as_quantized():
    model = Quantized()
    graph = Pipeline("canonicalize").run(trace(model, (X,)))
    targets = [str(node.target) for node in graph.calls]
    assert targets.count("graphc.quantize.default") == 2
    assert targets.count("graphc.dequantize.default") == 3
    assert not any("quantized_decomposed" in target for target in targets)
    integer = Pipeline(PRESETS["float"]).run(graph)
    assert "graphc.integer_linear.default" in [str(node.target) for node in integer.calls]
    assert {tensor.dtype for name, tensor in integer.weights.items() if name == "weight"} == {torch.int8}
    x = torch.randn(2, 3)
    assert (integer.run(x) - model(x)).abs().max() <= 0.03 * 1.001  # one step
