"""Reductions, pools, normalizations and scans against torch."""

import math

import pytest
import torch
from torch import nn

aten = torch.ops.aten
torch.manual_seed(0)
ATOL = 2e-5

X = torch.randn(2, 21, 9, 7)
ROWS = torch.randn(5, 67)
TIES = torch.tensor([[1.0, 3.0, 3.0, 0.0], [math.nan, 1.0, math.nan, 2.0], [-math.inf] * 4])
BYTES = torch.randint(-128, 128, (2, 21, 9, 7), dtype=torch.int8)
MASKED = torch.where(torch.rand(4, 33) < 0.5, -math.inf, torch.randn(4, 33))
W21, B21 = nn.Parameter(torch.randn(21)), nn.Parameter(torch.randn(21))
W7, B7 = nn.Parameter(torch.randn(7)), nn.Parameter(torch.randn(7))

CASES = {
    **{
        f"{name} {dims} {keep}": (target, X, dims, keep)
        for name, target in {"mean": aten.mean.dim, "sum": aten.sum.dim_IntList, "amax": aten.amax.default}.items()
        for dims, keep in (([2, 3], False), ([1], True), ([-1], False), ([0, 2], True), ([0, 1, 2, 3], False))
    },
    "sum of int8": (aten.sum.dim_IntList, BYTES, [2, 3], True, {"dtype": torch.int32}),
    "sum of bool": (aten.sum.dim_IntList, ROWS > 0, [1]),
    "sum of all": (aten.sum.default, X),
    "mean of one": (aten.mean.dim, torch.randn(3, 1), [1]),
    "amin": (aten.amin.default, ROWS, [1]),
    "amax nan": (aten.amax.default, TIES, [1]),
    "prod": (aten.prod.dim_int, torch.rand(3, 9) + 0.5, 1),
    "any": (aten.any.dim, ROWS > 2, 1),
    "all": (aten.all.dim, ROWS > -2, 0),
    "any of all": (aten.any.default, ROWS > 9),
    "argmax": (aten.argmax.default, TIES, 1),
    "argmax of all": (aten.argmax.default, X),
    "argmin keep": (aten.argmin.default, X, 1, True),
    "max": ((aten.max.dim, 0), X, 1),
    "max position": ((aten.max.dim, 1), X, 1),
    "min position": ((aten.min.dim, 1), BYTES, 2, True),
    "var": (aten.var.correction, X, [1], {"correction": 1}),
    "var of pixels": (aten.var.correction, X, [2, 3], {"correction": 0, "keepdim": True}),
    "norm": (aten.linalg_vector_norm.default, X, 2, [1], True),
    "norm of order 1": (aten.linalg_vector_norm.default, X, 1, [3]),
    "norm of all": (aten.linalg_vector_norm.default, X, math.inf),
    "cumsum": (aten.cumsum.default, X, 1),
    "cumsum int": (aten.cumsum.default, torch.randint(0, 5, (3, 8)), 1),
    "softmax": (aten.softmax.int, ROWS, -1),
    "softmax of channels": (aten.softmax.int, X, 1),
    "softmax masked": (aten._softmax.default, MASKED, 1, False),
    "softmax of nothing": (aten._softmax.default, TIES, 1, False),
    "softmax large": (aten.softmax.int, ROWS * 1e4, 1),
    "log_softmax": (aten.log_softmax.int, ROWS, 1),
    "layer_norm": (aten.layer_norm.default, X, [7], W7, B7),
    "layer_norm plain": (aten.layer_norm.default, X + 10, [9, 7]),
    "native_layer_norm": ((aten.native_layer_norm.default, 0), X, [7], W7, B7, 0.5),
    "group_norm": (aten.group_norm.default, X, 3, W21, B21),
    "group_norm plain": (aten.group_norm.default, torch.randn(2, 6, 5), 2),
    "max_pool": (aten.max_pool2d.default, X, [3, 3], [2, 2], [1, 1]),
    "max_pool dilated": (aten.max_pool2d.default, X, [3, 2], [1, 2], [1, 0], [2, 3]),
    "max_pool ceil": (aten.max_pool2d.default, X, [2, 3], [2, 3], [0, 0], [1, 1], True),
    "max_pool int8": (aten.max_pool2d.default, BYTES, [2, 2]),
    "max_pool one image": (aten.max_pool2d.default, X[0], [2, 2]),
    "avg_pool": (aten.avg_pool2d.default, X, [3, 3], [2, 2], [1, 1]),
    "avg_pool uncounted": (aten.avg_pool2d.default, X, [3, 3], [2, 2], [1, 1], False, False),
    "avg_pool ceil": (aten.avg_pool2d.default, X, [2, 2], [2, 2], [0, 0], True),
    "avg_pool divisor": (aten.avg_pool2d.default, X, [2, 3], [2, 3], [0, 0], False, True, 5),
    "avg_pool 1d": (aten.avg_pool1d.default, X[0], [3], [2]),
    "adaptive_avg_pool": (aten.adaptive_avg_pool2d.default, X, [4, 3]),
    "adaptive to one": (aten.adaptive_avg_pool2d.default, X, [1, 1]),
}


@pytest.mark.parametrize("name", CASES)
def test_computes_what_torch_does(suite, name):
    suite.check(name)
