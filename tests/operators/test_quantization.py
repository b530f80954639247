"""quantize, dequantize and rescale against exact arithmetic in Python's own integers and fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.operators.quantization import integer_dtype, multiplier_and_shift

ops = torch.ops.graphc
INT32 = (-(2**31), 2**31 - 1)
RANGES = st.sampled_from([(-128, 127), (-127, 127), (0, 255), (0, 127), (-8, 7), INT32, (-32768, 32767), (5, 5)])
extremes = st.one_of(st.sampled_from([*INT32, -1, 0, 1, 2**30, -(2**30)]), st.integers(*INT32))


def i32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def scalar(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype)


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(-128, 127, "int8"), (0, 127, "int8"), (0, 128, "uint8"), (0, 255, "uint8"), (-1, 128, "int32"), (0, 256, "int32"),
     (-129, 0, "int32"), (-8, 7, "int8"), (*INT32, "int32")],
)  # fmt: skip
def test_storage(low, high, dtype):
    assert integer_dtype(low, high) == getattr(torch, dtype)


# -- rescale -------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    st.lists(extremes, min_size=1, max_size=6),
    st.one_of(st.sampled_from([2**30, 2**31 - 1]), st.integers(2**30, 2**31 - 1)),
    st.one_of(st.sampled_from([2, 62]), st.integers(2, 62)),
    st.integers(-128, 255),
    st.integers(-128, 255),
    RANGES,
)
def test_rescale(values, multiplier, shift, input_zero, output_zero, limits):
    low, high = limits
    found = ops.rescale(i32(*values), i32(multiplier)[0], i32(shift)[0], input_zero, output_zero, None, low, high)
    expected = [
        min(max((((value - input_zero) * multiplier + (1 << (shift - 1))) >> shift) + output_zero, low), high)
        for value in values
    ]
    assert found.tolist() == expected
    assert found.dtype == integer_dtype(low, high)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2**30, 2**31 - 1), st.integers(2, 62)), min_size=1, max_size=4), st.integers(0, 2)
)
def test_rescale_of_channels(pairs, axis):
    shape = [2, 3, 4]
    shape[axis] = len(pairs)
    x = torch.randint(*INT32, shape).to(torch.int32)
    multiplier, shift = i32(*(m for m, _ in pairs)), i32(*(s for _, s in pairs))
    found = ops.rescale(x, multiplier, shift, 3, -7, axis, -128, 127)
    for channel, (m, s) in enumerate(pairs):
        one = ops.rescale(x.select(axis, channel), i32(m)[0], i32(s)[0], 3, -7, None, -128, 127)
        assert torch.equal(found.select(axis, channel), one)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_rescale_of_all_bytes(dtype):
    limits = torch.iinfo(dtype)
    x = torch.arange(limits.min, limits.max + 1).to(dtype)
    m, s = multiplier_and_shift(scalar(0.37, torch.float64))
    found = ops.rescale(x, m, s, 17, -3, None, -128, 127)
    expected = [
        min(max(math.floor((int(v) - 17) * Fraction(int(m), 2 ** int(s)) + Fraction(1, 2)) - 3, -128), 127) for v in x
    ]
    assert found.tolist() == expected


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.floats(2.0**-32, 2.0**29, exclude_max=True),
        st.integers(-32, 28).map(lambda power: 2.0**power),
        st.integers(-31, 28).map(lambda power: math.nextafter(2.0**power, 0)),  # a mantissa that rounds up to 1
        st.integers(-31, 28).map(lambda power: 2.0**power * (1 - 2.0**-26)),
    )
)
def test_multiplier_and_shift(factor):
    if factor >= math.nextafter(2.0**29, 0) * (1 - 2.0**-25):
        return
    multiplier, shift = (int(value) for value in multiplier_and_shift(scalar(factor, torch.float64)))
    assert 2**30 <= multiplier < 2**31
    assert 2 <= shift <= 62
    assert abs(Fraction(multiplier, 2**shift) / Fraction(factor) - 1) <= Fraction(1, 2**23)
    assert float(np.float32(multiplier)) == multiplier


def test_factors_of_channels_and_too_small_ones():
    factors = torch.tensor([1.0, 0.5, 2.0**-40, 1e-30], dtype=torch.float64)
    multiplier, shift = multiplier_and_shift(factors)
    assert multiplier.dtype == shift.dtype == torch.int32
    assert shift.tolist() == [30, 31, 62, 62]
    x = torch.full((4,), 2**29, dtype=torch.int32)
    assert ops.rescale(x, multiplier, shift, 0, 0, 0, *INT32).tolist() == [2**29, 2**28, 0, 0]


@pytest.mark.parametrize("factor", [2.0**29, 1e12, 1e300])
def test_factors_beyond_the_range_saturate(factor):
    parameters = multiplier_and_shift(scalar(factor, torch.float64))
    assert ops.rescale(i32(-3, -1, 0, 1, 5), *parameters, 0, 7, None, -128, 127).tolist() == [-128, -128, 7, 127, 127]


# -- quantize and dequantize ---------------------------------------------------------------------


def test_quantize_rounds_half_to_even():
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997, 0.50000006])
    assert ops.quantize(x, scalar(1), i32(0)[0], None, -128, 127).tolist() == [-2, -2, 0, 0, 2, 2, 0, 1]


@pytest.mark.parametrize(("low", "high"), [(-128, 127), (0, 255), (-8, 7), (*INT32,)])
def test_quantize_what_is_not_finite_or_too_large(low, high):
    x = torch.tensor([math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45, -0.0])
    found = ops.quantize(x, scalar(0.01), i32(3)[0], None, low, high).tolist()
    assert found == [low, high, low, high, low, 3, 3]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=6),
    st.floats(2.0**-20, 2.0**20, width=32),
    st.integers(-128, 255),
    st.sampled_from([(-128, 127), (0, 255), (-127, 127), (-8, 7)]),
)
def test_quantize(values, scale, zero, limits):
    """The division is IEEE's in float32, all else exact."""
    low, high = limits
    found = ops.quantize(torch.tensor(values), scalar(scale), i32(zero)[0], None, low, high)
    quotients = (torch.tensor(values) / scalar(scale)).tolist()
    expected = [
        (high if q > 0 else low) if math.isinf(q) else min(max(round(Fraction(q)) + zero, low), high) for q in quotients
    ]
    assert found.tolist() == expected
    assert found.dtype == integer_dtype(low, high)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_channels(axis):
    x = torch.randn(3, 3, 3) * 10
    scale, zero = torch.tensor([0.1, 0.25, 3.0]), i32(0, 5, -9)
    q = ops.quantize(x, scale, zero, axis, -128, 127)
    decoded = ops.dequantize(q, scale, zero, axis)
    for channel in range(3):
        parameters = scale[channel], zero[channel], None
        assert torch.equal(q.select(axis, channel), ops.quantize(x.select(axis, channel), *parameters, -128, 127))
        assert torch.equal(decoded.select(axis, channel), ops.dequantize(q.select(axis, channel), *parameters))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_dequantize(dtype):
    q = torch.arange(0, 128).to(dtype)
    found = ops.dequantize(q, scalar(0.3), i32(200)[0], None)
    assert found.dtype == torch.float32
    assert found.tolist() == [float(torch.tensor(value - 200.0) * scalar(0.3)) for value in range(128)]


def test_decoding_undoes_encoding():
    q = torch.arange(-128, 128).to(torch.int8)
    for scale in (1e-6, 0.1, 0.333, 7e5):
        parameters = scalar(scale), i32(-77)[0], None
        assert torch.equal(ops.quantize(ops.dequantize(q, *parameters), *parameters, -128, 127), q)
