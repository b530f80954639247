"""Decoding of weights and dynamic quantization: equal to the reference on every instruction set."""

import pytest
import torch
from torch import nn

from graphc.operators.weights import pack

ops = torch.ops.graphc
torch.manual_seed(0)
TARGETS = ("host", "x86-64:v2", "x86-64:v3", "arm64:cortex-a72", "arm64:cortex-a76")


def stored(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def codes(bits: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 2**bits, shape, dtype=torch.uint8)


HALF = torch.tensor([[0.1, -3e-6, 60000.0], [2.0, 0.0, 6e-8]], dtype=torch.float16)
Q = torch.randint(-128, 128, (2, 48), dtype=torch.int8)
X = torch.randn(3, 5, 96) * torch.rand(3, 5, 1) * 30
X[1, 2] = 0

CASES = {
    **{f"unpack {bits}": (ops.unpack.default, pack(codes(bits, 7, 37), bits), bits, 37) for bits in range(1, 9)},
    "decode f16": (ops.dequantize_groups.default, Q, stored(HALF), None, 16),
    "decode f32": (
        ops.dequantize_groups.default,
        Q,
        stored(HALF.float()),
        stored(torch.tensor(9, dtype=torch.int8)),
        16,
    ),
    "decode zeros": (ops.dequantize_groups.default, codes(8, 2, 48), stored(HALF), stored(codes(8, 2, 3)), 16),
    "decode rows": (ops.dequantize_groups.default, Q, stored(HALF[:, :1]), stored(Q[:, :1]), 48),
    "quantize": ((ops.quantize_dynamic.default, 0), X, 32),
    "scales": ((ops.quantize_dynamic.default, 1), X, 32),
    "quantize odd groups": ((ops.quantize_dynamic.default, 0), X, 3),
    "quantize rows": ((ops.quantize_dynamic.default, 0), X[0, 0], 96),
}
RTOL = ATOL = 0.0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_is_equal_to_the_reference(suite, name, target):
    suite.check(name, target)
