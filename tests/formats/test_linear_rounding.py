"""How codes and scales of the linear format are found: what each way makes small, and that it does."""

from __future__ import annotations

import pytest
import torch

from graphc import formats
from graphc.encoding.grid import Grid
from graphc.encoding.half_quadratic import cost
from graphc.errors import FormatError
from graphc.moments import loss

ROWS, COLUMNS = 24, 192
GRIDS = ("bits=4,group=32", "bits=3", "bits=2,group=64,symmetric=false", "bits=3,group=tensor")


@pytest.fixture
def weight() -> torch.Tensor:
    """A few outliers, as trained weights have them."""
    w = torch.randn(ROWS, COLUMNS) * 0.05
    return torch.where(torch.rand(ROWS, COLUMNS) < 0.01, 5 * w, w)


@pytest.fixture
def moments() -> torch.Tensor:
    """Of correlated inputs that have a mean, one of which is always nought."""
    x = torch.randn(1024, COLUMNS) @ (torch.randn(COLUMNS, COLUMNS) * torch.arange(1, COLUMNS + 1) ** -0.7) + 0.3
    x[:, 5] = 0
    return (x.t() @ x / len(x)).double()


def lost(text: str, weight: torch.Tensor, moments: torch.Tensor | None, given: torch.Tensor | None) -> float:
    chosen = formats.parse(f"linear({text})")
    return loss(weight - chosen.decode(chosen.encode(weight, given), tuple(weight.shape)), moments)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("rounding", ["gptq", "gptq,order=activation", "adaround,iterations=150"])
def test_rounding_by_moments_loses_less_than_to_nearest(grid, rounding, weight, moments):
    ways = [f"{grid},rounding={rounding}", f"{grid},range=mse,rounding={rounding}"]
    nearest = lost(grid, weight, moments, moments)
    assert lost(ways[0], weight, moments, moments) < 0.6 * nearest
    assert lost(ways[1], weight, moments, moments) < 0.6 * nearest


@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
def test_uncorrelated_inputs_leave_nothing_to_gain(rounding, weight):
    chosen = [formats.parse(text) for text in (f"linear(bits=4,rounding={rounding})", "linear(bits=4)")]
    codes = [item.encode(weight, torch.eye(COLUMNS))["codes"] for item in chosen]
    assert (codes[0] == codes[1]).float().mean() > 0.99


def test_gptq_makes_up_for_errors_with_the_next_columns():
    """Two equal inputs: what the first weight loses, the second takes up."""
    weight = torch.tensor([[0.2, 0.2, 7.0]])
    moments = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    chosen = formats.parse("linear(bits=4,symmetric=false,scale=f32,rounding=gptq,damping=1e-6)")
    decoded = chosen.decode(chosen.encode(weight, moments), (1, 3))
    torch.testing.assert_close(decoded[:, :2].sum(1), torch.tensor([0.4]), atol=0.25, rtol=0)
    nearest = formats.parse("linear(bits=4,symmetric=false,scale=f32)")
    assert nearest.decode(nearest.encode(weight), (1, 3))[:, :2].abs().max() < 1e-6


def test_adaround_rounds_up_or_down(weight, moments):
    chosen = formats.parse("linear(bits=4,scale=f32,rounding=adaround,iterations=50)")
    parts = chosen.encode(weight, moments)
    inside = (weight / parts["scale"]).abs() < 7
    apart = (chosen.decode(parts, (ROWS, COLUMNS)) - weight) / parts["scale"]
    assert apart[inside].abs().max() < 1.001


@pytest.mark.parametrize("grid", GRIDS)
def test_a_searched_range_has_the_smaller_squared_error(grid, weight, moments):
    assert lost(f"{grid},range=mse", weight, None, None) < lost(grid, weight, None, None)
    diagonal = torch.diag(moments.diagonal())
    searched = [lost(f"{grid},range=mse", weight, diagonal, given) for given in (moments, None)]
    assert searched[0] <= searched[1]


@pytest.mark.parametrize("grid", GRIDS)
def test_half_quadratic_has_the_smaller_robust_error(grid, weight):
    chosen = [formats.parse(f"linear({grid}{way})") for way in (",rounding=hqq", "")]
    errors = [weight - item.decode(item.encode(weight), (ROWS, COLUMNS)) for item in chosen]
    assert errors[0].abs().pow(0.7).sum() < 0.99 * errors[1].abs().pow(0.7).sum()


def test_half_quadratic_cost_is_that_of_the_paper():
    grid = Grid(torch.ones(1, 1, 1), torch.zeros(1, 1, 1), 3)
    assert float(cost(torch.tensor([[[0.0, 1.25, 3.5]]]), grid, (2,))) == pytest.approx(0.25**0.7 + 0.5**0.7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linear(rounding=up)", "rounding=up must be one of nearest, hqq, gptq, adaround"),
        ("linear(range=x)", "range=x must be one of max, mse"),
        ("linear(order=x)", "order=x must be one of natural, activation"),
        ("linear(damping=0)", "damping=0 must be a number above 0"),
        ("linear(iterations=0)", "iterations=0 must be a number from 1"),
    ],
)
def test_illegal_options(text, message):
    with pytest.raises(FormatError, match=message):
        formats.parse(text)


@pytest.mark.parametrize("rounding", ["gptq", "adaround"])
def test_moments_must_be_there(rounding, weight):
    with pytest.raises(FormatError, match="needs the moments of the layer's inputs"):
        formats.parse(f"linear(rounding={rounding})").encode(weight)
