"""Unstructured and binary weights, and what data choose to keep: what is stored, how far off it is, what is refused."""

from __future__ import annotations

import pytest
import torch

from graphc import formats
from graphc.errors import FormatError
from graphc.graph import Graph
from graphc.moments import loss
from graphc.structure import Structure

SHAPE = (32, 96)
DENSITIES = (0.02, 0.1, 0.3, 0.5, 1.0)


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(SHAPE)


@pytest.fixture
def moments() -> torch.Tensor:
    x = torch.randn(512, 96) @ (torch.randn(96, 96) * torch.arange(1, 97) ** -0.5)
    return (x.t() @ x / 512).double()


def lost(text: str, weight: torch.Tensor, moments: torch.Tensor, given: torch.Tensor | None) -> float:
    chosen = formats.parse(text)
    return loss(weight - chosen.decode(chosen.encode(weight, given), SHAPE), moments)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("values", ["f16", "f32"])
def test_the_largest_are_kept_in_the_cheaper_coding(density, values, weight):
    chosen = formats.parse(f"unstructured(density={density},values={values})")
    parts = chosen.encode(weight)
    decoded = chosen.decode(parts, SHAPE)
    count = max(1, round(density * weight.numel()))
    kept = decoded != 0
    assert int(kept.sum()) == count
    torch.testing.assert_close(decoded[kept], weight[kept], rtol=2**-11, atol=0)
    assert weight[kept].abs().min() >= (weight[~kept].abs().max() if density < 1 else 0)
    size = 2 if values == "f16" else 4
    assert ("gaps" in parts) == (density < 0.2)
    assert chosen.bytes(parts) <= count * size + 32 * 12
    if density == 0.1:  # some 3 bits and a few noughts for a gap of 9, where a bitmap takes 10
        assert chosen.bytes(parts) < count * size + 32 * 9


@pytest.mark.parametrize("density", DENSITIES)
def test_expression_is_read_back(density, weight):
    chosen = formats.parse(f"unstructured(density={density})")
    graph = Graph("g", Structure.of(((), {})), Structure.of(0))
    parts = chosen.encode(weight)
    found = formats.recognize(chosen.express(graph, parts, SHAPE, "w"))
    assert type(found.format) is type(chosen)
    assert {part: str(stored.target) for part, stored in found.parts.items()} == {part: f"w.{part}" for part in parts}


@pytest.mark.parametrize("places", [[700], [0], [31 * 96 + 95], [0, 300, 301, 3000]])
def test_gaps_longer_than_their_bits(places):
    weight = torch.zeros(SHAPE)
    weight.view(-1)[places] = 2.0
    chosen = formats.parse(f"unstructured(density={len(places) / weight.numel()})")
    parts = chosen.encode(weight)
    assert "gaps" in parts
    assert torch.equal(chosen.decode(parts, SHAPE), weight)


@pytest.mark.parametrize("text", ["unstructured(density=0.4{})", "sparse{}"])
def test_each_way_of_selection_loses_less_than_the_one_before(text, weight, moments):
    """Magnitude, Wanda, SparseGPT."""
    plain, update = text.format(""), text.format(",update=true") if "(" in text else text.format("(update=true)")
    magnitude, wanda = lost(plain, weight, moments, None), lost(plain, weight, moments, moments)
    assert lost(update, weight, moments, moments) < wanda < magnitude


def test_wanda_compares_within_a_row(moments):
    weight = torch.randn(SHAPE) * torch.logspace(-2, 2, 32).unsqueeze(1)
    chosen = formats.parse("unstructured(density=0.25,values=f32)")
    decoded = chosen.decode(chosen.encode(weight, moments), SHAPE)
    assert ((decoded != 0).sum(1) == 24).all()
    scores = weight.abs() * moments.diagonal().sqrt().float()
    for row, kept in zip(scores, decoded != 0, strict=True):
        assert row[kept].min() >= row[~kept].max()


def test_binary_is_the_sign_times_the_best_scale(weight, moments):
    chosen = formats.parse("binary")
    parts = chosen.encode(weight)
    expected = weight.sign() * weight.abs().mean(1, keepdim=True)
    torch.testing.assert_close(chosen.decode(parts, SHAPE), expected)
    assert chosen.bytes(parts) == 32 * 12 + 4 + 32 * 4
    assert lost("binary", weight, moments, moments) < lost("binary", weight, moments, None)
    signs = formats.parse("binary(scale=false)")
    assert torch.equal(signs.decode(signs.encode(weight), SHAPE), weight.sign())
    graph = Graph("g", Structure.of(((), {})), Structure.of(0))
    for item in (chosen, signs):
        assert formats.recognize(item.express(graph, item.encode(weight), SHAPE, "w")).format == item


def test_whitened_factors_lose_less_than_plain_ones(weight, moments):
    plain, whitened = (lost("low_rank(rank=8)", weight, moments, given) for given in (None, moments))
    assert whitened < 0.8 * plain
    root = torch.linalg.cholesky(moments)
    least = float(torch.linalg.svdvals(weight.double() @ root)[8:].square().sum())
    assert least * 0.999 <= whitened <= least * 1.05


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("unstructured(density=0)", "density=0 must be above 0"),
        ("unstructured(values=int8)", "values=int8 must be one of f16, f32"),
        ("unstructured(update=true)", "needs the moments of the layer's inputs"),
        ("sparse(update=true)", "needs the moments of the layer's inputs"),
    ],
)
def test_illegal(text, message, weight):
    with pytest.raises(FormatError, match=message):
        formats.parse(text).encode(weight)


@pytest.mark.parametrize("text", ["unstructured", "binary"])
def test_illegal_weights(text, weight):
    with pytest.raises(FormatError, match="NaN"):
        formats.parse(text).encode(weight * torch.nan)
