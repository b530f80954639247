"""Element-wise operators against torch: broadcasting, types, and values at which formulas break."""

import math

import pytest
import torch
from torch import nn

aten, quantized = torch.ops.aten, torch.ops.graphc
torch.manual_seed(0)

ODD = torch.tensor(
    [
        *(0.0, -0.0, 1.0, -1.0, 0.5, 1e-40, -1e-40, 1e-30, 1e30, -1e30, 88.0, -88.0, 100.0, -104.0, 3.0e38),
        *(math.inf, -math.inf, math.nan),
    ]
)
X = torch.cat([ODD, torch.randn(1000) * 4])
POSITIVE = X.abs()
IMAGE = torch.randn(2, 5, 3, 7)
INTEGERS = torch.randint(-50, 50, (37,))
NARROW = torch.randint(-128, 128, (2, 5, 3, 7), dtype=torch.int8)
FLAGS = torch.rand(37) < 0.5
OTHER_FLAGS = torch.rand(37) < 0.5


def stored(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


UNARY = [
    "neg",
    "abs",
    "exp",
    "expm1",
    "sigmoid",
    "tanh",
    "erf",
    "relu",
    "silu",
    "floor",
    "ceil",
    "round",
    "trunc",
    "sign",
    "isnan",
    "isinf",
    "reciprocal",
    "square",
    "hardswish",
    "hardsigmoid",
    "elu",
    "softplus",
    "leaky_relu",
    "hardtanh",
]
CASES = {name: (getattr(aten, name).default, X) for name in UNARY}
CASES |= {name: (getattr(aten, name).default, POSITIVE) for name in ("log", "log2", "log1p", "sqrt", "rsqrt")}
CASES |= {name: (getattr(aten, name).default, torch.randn(1001) * 300) for name in ("sin", "cos")}
CASES |= {
    f"{name} {shape}": (getattr(aten, name).Tensor, IMAGE, other)
    for name in ("add", "sub", "mul", "div", "gt", "le", "eq", "ne")
    for shape, other in {
        "same": IMAGE.clone(),
        "channel": torch.randn(5, 1, 1),
        "row": torch.randn(7),
        "scalar": torch.randn(()),
        "outer": torch.randn(2, 1, 1, 1),
    }.items()
}
CASES |= {
    "log of nothing": (aten.log.default, -POSITIVE),
    # torch's gelu overflows a little before the largest float, and gives NaN at infinity.
    "gelu": (aten.gelu.default, X[18:] * 3),
    "gelu tanh": (aten.gelu.default, X[18:], {"approximate": "tanh"}),
    "broadcast both": (aten.mul.Tensor, torch.randn(4, 1, 6), torch.randn(3, 1)),
    "add alpha": (aten.add.Tensor, IMAGE, torch.randn(7), {"alpha": 2}),
    "sub scalar": (aten.sub.Tensor, IMAGE, 1.5),
    "rsub": (aten.rsub.Scalar, IMAGE, 2.0),
    "int + float": (aten.add.Tensor, INTEGERS, 0.5),
    "int / int": (aten.div.Tensor, INTEGERS, torch.full((37,), 7)),
    "int8 add": (aten.add.Tensor, NARROW, NARROW.clone()),
    "bool * float": (aten.mul.Tensor, FLAGS, torch.randn(37)),
    "maximum": (aten.maximum.default, X, X.flip(0)),
    "minimum": (aten.minimum.default, X, X.flip(0)),
    "pow 2": (aten.pow.Tensor_Scalar, X, 2),
    "pow 3.0": (aten.pow.Tensor_Scalar, X, 3.0),
    "pow -1": (aten.pow.Tensor_Scalar, X, -1),
    "pow 0.5": (aten.pow.Tensor_Scalar, POSITIVE, 0.5),
    "pow 2.5": (aten.pow.Tensor_Scalar, X[18:], 2.5),
    "pow tensors": (aten.pow.Tensor_Tensor, torch.randn(999) * 3, torch.randint(-5, 5, (999,)).float()),
    "pow of number": (aten.pow.Scalar, 10000.0, torch.rand(33)),
    "remainder": (aten.remainder.Scalar, torch.randn(33) * 9, 2.5),
    "remainder int": (aten.remainder.Scalar, INTEGERS, -7),
    "fmod int": (aten.fmod.Scalar, INTEGERS, 7),
    "floor_divide int": (aten.div.Tensor_mode, INTEGERS, torch.full((37,), -7), {"rounding_mode": "floor"}),
    "trunc divide": (aten.div.Tensor_mode, INTEGERS.float(), torch.full((37,), 7.0), {"rounding_mode": "trunc"}),
    "clamp": (aten.clamp.default, X, -1.5, 2),
    "clamp below": (aten.clamp.default, X, None, 0.25),
    "clamp int8": (aten.clamp.default, NARROW, -7, 99),
    "relu int8": (aten.relu.default, NARROW),
    "leaky slope": (aten.leaky_relu.default, X, 0.3),
    "elu alpha": (aten.elu.default, X, 1.7),
    "softplus beta": (aten.softplus.default, X, 3, 5),
    "prelu": (aten._prelu_kernel.default, IMAGE, stored(torch.rand(1, 5, 1, 1))),
    "prelu by channel": (aten.prelu.default, IMAGE, stored(torch.rand(5))),
    "where": (aten.where.self, FLAGS, torch.randn(37), torch.randn(())),
    "where types": (aten.where.self, FLAGS, torch.randn(37), INTEGERS),
    "masked_fill": (aten.masked_fill.Scalar, torch.randn(37), FLAGS, -math.inf),
    "eq number": (aten.eq.Scalar, INTEGERS, 3),
    "ne nan": (aten.ne.Tensor, X, X.clone()),
    "gt mixed": (aten.gt.Scalar, INTEGERS, 0.5),
    "and": (aten.logical_and.default, FLAGS, OTHER_FLAGS),
    "or": (aten.logical_or.default, INTEGERS, OTHER_FLAGS),
    "xor": (aten.logical_xor.default, FLAGS, OTHER_FLAGS),
    "not": (aten.logical_not.default, INTEGERS),
    "bits and": (aten.bitwise_and.Tensor, INTEGERS, INTEGERS.flip(0)),
    "bits and truth": (aten.bitwise_and.Tensor, FLAGS, OTHER_FLAGS),
    "bits or": (aten.bitwise_or.Tensor, FLAGS, OTHER_FLAGS),
    "bits not": (aten.bitwise_not.default, FLAGS),
    "to int": (aten._to_copy.default, torch.randn(37) * 50, {"dtype": torch.int32}),
    "to bool": (aten._to_copy.default, INTEGERS, {"dtype": torch.bool}),
    "bool to float": (aten._to_copy.default, FLAGS, {"dtype": torch.float32}),
    "float to long": (aten._to_copy.default, torch.randn(37) * 1e6, {"dtype": torch.int64}),
    "same type": (aten._to_copy.default, torch.randn(37), {"dtype": torch.float32}),
    "batch norm": (
        aten.batch_norm.default, IMAGE, stored(torch.randn(5)), stored(torch.randn(5)), stored(torch.randn(5)),
        stored(torch.rand(5) + 0.5), False, 0.1, 0.25, False,
    ),
    "large": (aten.tanh.default, torch.randn(3, 40001)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_computes_what_torch_does(suite, name):
    suite.check(name)


@pytest.mark.parametrize(
    "name", ["exp", "log", "tanh", "erf", "sin", "pow 2.5", "round", "where", "bool to float", "large"]
)
@pytest.mark.parametrize("target", ["x86-64:v2", "arm64:cortex-a72"])
def test_on_the_smallest_instruction_sets(suite, name, target):
    suite.check(name, target)
