"""Rounding with gradients: the values of the formula, LSQ's gradients, in every memory format and precision."""

from __future__ import annotations

import pytest
import torch

from graphc.training import straight_through


def plain(x: torch.Tensor, step: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """The formula, differentiated by autograd."""
    steps = (x / step).clamp(low, high)
    return (steps + (steps.round() - steps).detach()) * step


@pytest.mark.parametrize("bounds", [(0, 3), (-8, 7)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_are_those_of_the_formula(bounds, layout):
    torch.manual_seed(0)
    x = torch.randn(3, 4, 5, 6).contiguous(memory_format=layout)
    given = torch.randn(3, 4, 5, 6)
    found = []
    for function in (plain, straight_through.quantized):
        value, step = x.clone().requires_grad_(), torch.tensor(0.3, requires_grad=True)
        result = function(value, step, *bounds)
        result.backward(given)
        found.append((result.detach(), value.grad, step.grad))
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[0][0], found[1][0])


def test_gradients_of_bfloat16_values_are_summed_in_float32():
    x = torch.full((1 << 12,), 0.7, dtype=torch.bfloat16, requires_grad=True)
    step = torch.tensor(1.0, requires_grad=True)
    result = straight_through.quantized(x, step, 0, 3)
    result.sum().backward()
    assert result.dtype == x.grad.dtype == torch.bfloat16
    # 0.7 is 0.69921875 there: each value adds 1 - 0.69921875, and bfloat16 would stop counting at 256.
    assert float(step.grad) == pytest.approx(4096 * (1 - 0.69921875), rel=1e-5)


def test_rounding_passes_gradients_and_scaling_scales_them():
    x = torch.tensor([0.4, 0.6], requires_grad=True)
    straight_through.scale_gradient(straight_through.rounded(x), 0.5).sum().backward()
    assert x.grad.tolist() == [0.5, 0.5]
