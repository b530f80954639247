"""Integer layers against plain loops in int64."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

ops = torch.ops.graphc


def loops(x, weight, bias, x_zero, stride, padding, dilation, groups):
    """Convolution by its definition, in int64."""
    x, weight = x.numpy().astype(np.int64) - x_zero, weight.numpy().astype(np.int64)
    x = np.pad(x, [(0, 0), (0, 0), *((pad, pad) for pad in padding)])
    outputs, taps = weight.shape[0], weight.shape[2:]
    sizes = [(n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], taps, stride, dilation, strict=True)]
    y = np.zeros((x.shape[0], outputs, *sizes), np.int64)
    per_group = weight.shape[1]
    for channel in range(outputs):
        start = channel // (outputs // groups) * per_group
        window = x[:, start : start + per_group]
        for place in product(*map(range, sizes)):
            at = [
                slice(p * s, p * s + d * (k - 1) + 1, d)
                for p, s, d, k in zip(place, stride, dilation, taps, strict=True)
            ]
            y[(slice(None), channel, *place)] = (window[(slice(None), slice(None), *at)] * weight[channel]).sum(
                axis=tuple(range(1, window.ndim))
            )
        if bias is not None:
            y[:, channel] += int(bias[channel])
    return torch.from_numpy(y)


def random(shape, dtype):
    limits = torch.iinfo(dtype)
    return torch.randint(limits.min, limits.max + 1, shape).to(dtype)


CASES = [
    # x, weight, bias, x_zero, stride, padding, dilation, groups, dtype of x
    ((2, 4, 7, 5), (6, 4, 3, 2), True, -17, [2, 1], [1, 0], [1, 2], 1, torch.int8),
    ((1, 6, 5, 6), (4, 3, 2, 3), False, 5, [1, 3], [0, 2], [2, 1], 2, torch.int8),
    ((1, 5, 4, 4), (5, 1, 3, 3), True, 127, [1, 1], [1, 1], [1, 1], 5, torch.int8),
    ((1, 4, 4, 4), (8, 1, 3, 3), True, -128, [1, 1], [2, 2], [1, 1], 4, torch.int8),
    ((2, 3, 9), (4, 3, 4), True, 200, [2], [3], [1], 1, torch.uint8),
    ((1, 3, 6, 6), (2, 3, 1, 1), True, 255, [1, 1], [1, 1], [1, 1], 1, torch.uint8),
]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_integer_convolution(case):
    x_shape, w_shape, has_bias, *geometry, dtype = case
    x, weight = random(x_shape, dtype), random(w_shape, torch.int8)
    bias = random((w_shape[0],), torch.int16).to(torch.int32) * 10_000 if has_bias else None
    found = ops.integer_convolution(x, weight, bias, *geometry)
    assert found.dtype == torch.int32
    assert torch.equal(found.to(torch.int64), loops(x, weight, bias, *geometry))


def test_padding_contributes_nought():
    """Padded places count as x_zero: a constant input equal to it gives the bias everywhere."""
    x = torch.full((1, 3, 4, 4), 77, dtype=torch.int8)
    bias = torch.tensor([5, -6], dtype=torch.int32)
    found = ops.integer_convolution(x, random((2, 3, 3, 3), torch.int8), bias, 77, [1, 1], [2, 2], [1, 1], 1)
    assert found[0, 0].unique().tolist() == [5]
    assert found[0, 1].unique().tolist() == [-6]


@pytest.mark.parametrize("weights", [(-128, -127), (-128, 127), (127, 126)])
def test_sums_that_float32_does_not_hold(weights):
    """Sums beyond 2^24, odd ones among them; -128 has no absolute value in int8."""
    torch.manual_seed(1)
    x = torch.full((1, 1024, 1, 3), 127, dtype=torch.int8)
    x[:, ::3] = 126
    weight = torch.where(torch.rand(2, 1024, 1, 1) < 0.5, *weights).to(torch.int8)
    found = ops.integer_convolution(x, weight, None, -128, [1, 1], [0, 0], [1, 1], 1)
    expected = loops(x, weight, None, -128, [1, 1], [0, 0], [1, 1], 1)
    assert torch.equal(found.to(torch.int64), expected)
    flat = ops.integer_linear(x[0, :, 0].t().contiguous(), weight[:, :, 0, 0], None, -128)
    assert torch.equal(flat.to(torch.int64), expected[0, :, 0].t())


@pytest.mark.parametrize(
    ("shape", "dtype", "zero"), [((7,), torch.int8, 3), ((2, 7), torch.uint8, 250), ((2, 3, 7), torch.int8, -128)]
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_integer_linear(shape, dtype, zero, has_bias):
    x, weight = random(shape, dtype), random((5, 7), torch.int8)
    bias = random((5,), torch.int32) // 2 if has_bias else None
    found = ops.integer_linear(x, weight, bias, zero)
    expected = (x.to(torch.int64) - zero) @ weight.to(torch.int64).t() + (0 if bias is None else bias.to(torch.int64))
    assert found.dtype == torch.int32
    assert torch.equal(found.to(torch.int64), expected)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [([2, 3], [1, 2], [1, 0]), ([3, 3], [3, 3], [0, 0]), ([5, 4], [1, 1], [2, 2])]
)
@pytest.mark.parametrize(("dtype", "zero"), [(torch.int8, -128), (torch.uint8, 255), (torch.int8, 0)])
def test_integer_sum_pool2d(kernel, stride, padding, dtype, zero):
    x = random((2, 3, 6, 5), dtype)
    weight = torch.zeros((3, 1, *kernel), dtype=torch.int8) + 1
    found = ops.integer_sum_pool2d(x, zero, kernel, stride, padding)
    assert found.dtype == torch.int32
    assert torch.equal(found.to(torch.int64), loops(x, weight, None, zero, stride, padding, [1, 1], 3))


def test_exact_whatever_precision_the_user_asks_of_matrix_products():
    """torch.set_float32_matmul_precision lets float products run in bfloat16; integers must not notice."""
    x, weight = random((64, 96), torch.int8), random((64, 96), torch.int8)
    expected = (x.to(torch.int64) - 5) @ weight.to(torch.int64).t()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = ops.integer_linear(x, weight, None, 5)
        image = ops.integer_convolution(
            x[:, :, None, None], weight[:, :, None, None], None, 5, [1, 1], [0, 0], [1, 1], 1
        )
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.to(torch.int64), expected)
    assert torch.equal(image[:, :, 0, 0].to(torch.int64), expected)


S, Z = torch.tensor(0.1), torch.tensor(3, dtype=torch.int32)
C, CZ = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 1, -2], dtype=torch.int32)
M, N = torch.tensor([2**30, 2**31 - 1, 2**30 + 7], dtype=torch.int32), torch.tensor([31, 40, 35], dtype=torch.int32)
BYTES = torch.arange(-60, 60).reshape(2, 3, 4, 5).to(torch.int8)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("quantize", (torch.randn(2, 3), S, Z, None, -128, 127)),
        ("quantize", (torch.randn(2, 3), C, CZ, 1, 0, 255)),
        ("quantize", (torch.randn(()), S, Z, None, -1000, 1000)),
        ("dequantize", (BYTES, S, Z, None)),
        ("dequantize", (BYTES.to(torch.uint8), C, CZ, 1)),
        ("dequantize", (BYTES.to(torch.int32), C, CZ, -3)),
        ("rescale", (BYTES, M[0], N[0], 3, -4, None, -128, 127)),
        ("rescale", (BYTES.to(torch.int32), M, N, 0, 9, 1, 0, 255)),
        ("rescale", (BYTES, M[0], N[0], 3, 0, None, *(-(2**31), 2**31 - 1))),
        ("integer_convolution", (BYTES, torch.ones(6, 1, 3, 2, dtype=torch.int8), None, 3, [2, 1], [1, 0], [1, 2], 3)),
        ("integer_convolution", (BYTES[0], torch.ones(2, 4, 3, dtype=torch.int8), N[:2], 3, [1], [2], [2], 1)),
        ("integer_linear", (BYTES, torch.ones(7, 5, dtype=torch.int8), None, -3)),
        ("integer_linear", (BYTES[0, 0, 0].to(torch.uint8), torch.ones(3, 5, dtype=torch.int8), N, 3)),
        ("integer_sum_pool2d", (BYTES, 3, [2, 2], [1, 2], [1, 1])),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_shape_rules_agree_with_the_reference(name, arguments):
    torch.library.opcheck(
        getattr(ops, name).default,
        arguments,
        test_utils=["test_schema", "test_faketensor", "test_autograd_registration"],
    )
    found = getattr(ops, name)(*arguments)
    predicted = getattr(ops, name)(*(a.to("meta") if isinstance(a, torch.Tensor) else a for a in arguments))
    assert (found.shape, found.dtype) == (predicted.shape, predicted.dtype)
    assert found.is_contiguous()
