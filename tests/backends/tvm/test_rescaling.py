"""Each form of rescale: chosen where it is exact, and only there."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from graphc.backends.tvm.index_functions import rescaling
from graphc.graph import Graph
from graphc.operators.quantization import multiplier_and_shift
from graphc.structure import Structure
from graphc.tensor_type import TensorType


def bounds(zero=0, qmin=-128, qmax=127):
    return {"output_zero": zero, "qmin": qmin, "qmax": qmax}


def parameters(*factors):
    multiplier, shift = multiplier_and_shift(torch.tensor(factors, dtype=torch.float64))
    return np.int64(multiplier.numpy()), np.int64(shift.numpy())


def ends(low, high):
    return np.int64([low]), np.int64([high])


def is_float(multiplier, shift, low, high, args):
    return rescaling._is_float(np.int64([multiplier]), np.int64([shift]), *ends(low, high), args)


def reference(x, multiplier, shift, args):
    y = ((x * multiplier + (1 << (shift - 1))) >> shift) + args["output_zero"]
    return min(max(y, args["qmin"]), args["qmax"])


def rounded(x, multiplier, shift, args):
    """What the fused multiply-add gives: half to even, of the difference as a float32."""
    y = round(Fraction(int(np.float32(x))) * multiplier / (1 << shift) + args["output_zero"])
    return min(max(y, args["qmin"]), args["qmax"])


@pytest.mark.parametrize("seed", range(4))
def test_float_form_is_refused_wherever_it_differs(seed):
    """Short multipliers make ties, long shifts large sums: what is accepted is right for every x."""
    generator = np.random.default_rng(seed)
    found = set()
    for _ in range(300):
        kept = int(generator.integers(1, 25))  # significant bits
        multiplier = int(generator.integers(1 << (kept - 1), 1 << kept)) << (31 - kept)
        shift, args = int(generator.integers(29, 42)), bounds(int(generator.integers(-128, 128)))
        low = int(generator.integers(-3000, 3000))
        accepted = is_float(multiplier, shift, low, low + 2000, args)
        same = all(
            reference(x, multiplier, shift, args) == rounded(x, multiplier, shift, args) for x in range(low, low + 2001)
        )
        assert same or not accepted
        found.add((same, accepted))
    assert {(True, True), (False, False)} <= found


def test_differences_beyond_float32_matter_only_before_the_clamp():
    multiplier, shift = (int(value[0]) for value in parameters(0.0003))
    assert is_float(multiplier, shift, -(2**30), 2**30, bounds())  # clamped from 2^19 on
    assert not is_float(multiplier, shift, -(2**30), 2**30, bounds(0, -(2**31), 2**31 - 1))  # the sum leaves 2^22


def test_a_channel_with_a_huge_bias_is_judged_by_its_steps():
    """x from 2^30 on, where float32 counts in steps of 64: right as long as no step of y is near."""
    multiplier, shift = (int(value[0]) for value in parameters(3.46e-9))
    boundary = int(Fraction(7, 2) * (1 << shift) / multiplier)  # y goes from 3 to 4
    assert is_float(multiplier, shift, boundary + 500, boundary + 9000, bounds())
    assert not is_float(multiplier, shift, boundary - 500, boundary + 500, bounds())


@pytest.mark.parametrize(("low", "high", "expected"), [(-255, 255, True), (-(2**20), 0, False)])
def test_whole_form_needs_room_in_int32(low, high, expected):
    assert rescaling._is_whole(*parameters(1.0, 32767.0), *ends(low, high), bounds()) == expected


def test_whole_form_needs_whole_factors():
    assert not rescaling._is_whole(*parameters(1.0, 2.5), *ends(-255, 255), bounds())


quantized = torch.ops.graphc
BYTES = torch.arange(-128, 128, dtype=torch.int32).to(torch.int8).reshape(1, 8, 4, 8)


def stored(tensor):
    return nn.Parameter(tensor, requires_grad=False)


def rescale(x, factor, zero, low, high, axis=None, output_zero=0):
    factors = multiplier_and_shift(torch.tensor(factor, dtype=torch.float64))
    return (quantized.rescale.default, x, *map(stored, factors), zero, output_zero, axis, low, high)


CASES = {
    "float": rescale(BYTES, 0.3, -7, -128, 127),
    "float, clamped": rescale(BYTES, 1.7, 5, -100, 90, None, -3),
    "float of channels": rescale(BYTES, [0.1 * c + 0.01 for c in range(8)], 0, 0, 255, 1, 131),
    "ties": rescale(BYTES, 0.25, -1, -128, 127),
    "whole": rescale(BYTES, 32767.0, 100, -(2**31), 2**31 - 1),
    "whole, clamped": rescale(BYTES.to(torch.uint8), [float(c) for c in range(1, 9)], 100, -128, 127, 1, 40),
    "beyond int32": rescale(BYTES, 2.0**28, -128, -(2**31), 2**31 - 1),
    "float of int32": rescale(BYTES.int() * 7654321, 3e-8, 12345, -128, 127),
}


@pytest.mark.parametrize("target", ["host", "x86-64:v2", "x86-64:v3", "x86-64:v4", "arm64:cortex-a72"])
@pytest.mark.parametrize("name", CASES)
def test_is_equal_to_the_reference(suite, name, target):
    suite.check(name, target)


def residual(bias: int, factor: float) -> Graph:
    """A layer and a sum behind it, as integer_arithmetic writes them, in one group."""
    torch.manual_seed(0)
    x = torch.randint(-128, 128, (1, 24, 5, 6)).to(torch.int8)
    graph = Graph("residual", Structure.of(((x,), {})), Structure.of(0))
    node = graph.add_input("x", TensorType.of(x))
    weight = graph.add_weight("w", torch.randint(-128, 128, (24, 24, 1, 1)).to(torch.int8))
    offset = graph.add_weight("b", torch.full((24,), bias, dtype=torch.int32))

    def scaled(value, factor, zero, output_zero, axis, *limits):
        factors = multiplier_and_shift(torch.tensor(factor, dtype=torch.float64))
        names = [graph.add_weight("f", tensor) for tensor in factors]
        return graph.call(quantized.rescale.default, value, *names, zero, output_zero, axis, *limits)

    layer = graph.call(quantized.integer_convolution.default, node, weight, offset, 3, [1, 1], [0, 0], [1, 1], 1)
    narrow = scaled(layer, [factor * (1 + c / 9) for c in range(24)], 0, -5, 1, -128, 127)
    terms = (scaled(value, steps, zero, 0, None, -(2**31), 2**31 - 1) for value, steps, zero in
             ((narrow, 32767.0, -5), (node, 11111.0, 3)))  # fmt: skip
    total = graph.call(torch.ops.aten.add.Tensor, *terms)
    result = scaled(total, 0.7 / 32767, 0, 9, None, -128, 127)
    for member in (layer, narrow, *total.args, total, result):
        member.meta["group"] = 0
    graph.set_output([result])
    return graph


@pytest.mark.parametrize(("bias", "factor"), [(1000, 1e-3), (2**30, 1e-3), (-(2**30), 3e-9)])
@pytest.mark.parametrize("target", ["host", "x86-64:v3", "arm64:cortex-a76"])
def test_a_layer_with_a_residual(check, target, bias, factor):
    check(residual(bias, factor), [torch.randint(-128, 128, (1, 24, 5, 6)).to(torch.int8)], target=target)
