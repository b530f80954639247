"""The linear format: what it stores, how far it is from the weight, what it refuses, and its text."""

from __future__ import annotations

import pytest
import torch

from graphc import formats
from graphc.errors import FormatError
from graphc.graph import Graph
from graphc.structure import Structure

TEXTS = [
    "linear",
    "linear(group=tensor,scale=f32)",
    "linear(symmetric=false)",
    *(f"linear(bits={bits},group=32)" for bits in (2, 3, 4)),
    *(f"linear(bits={bits},group=16,symmetric=false,scale=f32)" for bits in (2, 3, 4)),
    "linear(bits=4)",
]


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(12, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_expression_are_read_back(text, weight):
    chosen = formats.parse(text)
    assert str(chosen) == text
    graph = Graph("g", Structure.of(((), {})), Structure.of(0))
    parts = chosen.encode(weight)
    node = chosen.express(graph, parts, (12, 96), "w")
    found = formats.recognize(node)
    assert found.format == chosen
    assert {part: str(stored.target) for part, stored in found.parts.items()} == {part: f"w.{part}" for part in parts}


@pytest.mark.parametrize("text", TEXTS)
def test_error_is_at_most_half_a_step(text, weight):
    chosen = formats.parse(text)
    parts = chosen.encode(weight)
    decoded = chosen.decode(parts, (12, 96))
    step = parts["scale"].float().abs()
    step = step.expand(12, step.shape[-1]).repeat_interleave(96 // step.shape[-1], 1)
    # The value at the far end of the shorter half may lie a whole step away, as may ends shifted by a rounded zero.
    assert ((decoded - weight).abs() <= step * 1.01).all()
    assert ((decoded - weight).abs() <= step * 0.51).float().mean() > 0.9


def test_the_largest_value_is_met_in_a_symmetric_group():
    weight = torch.tensor([[1.0, -2.0, 0.5, 8.0], [0.0, 0.0, 0.0, 0.0]])
    chosen = formats.parse("linear(bits=4)")
    assert chosen.decode(chosen.encode(weight), (2, 4)).tolist() == [[1.0, -2.0, 0.0, 8.0], [0.0, 0.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("linear", 12 * 96 + 12 * 2),
        ("linear(bits=4,group=32)", 12 * 48 + 12 * 3 * 2 + 1),
        ("linear(bits=3,group=32,scale=f32)", 12 * 36 + 12 * 3 * 4 + 1),
        ("linear(bits=2,group=32,symmetric=false)", 12 * 24 + 12 * 3 * 3),
    ],
)
def test_every_byte_counts(text, count, weight):
    chosen = formats.parse(text)
    assert chosen.bytes(chosen.encode(weight)) == count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linear(bits=5)", r"bits=5 must be one of 2, 3, 4, 8"),
        ("linear(scale=bf16)", r"scale=bf16 must be one of f16, f32"),
        ("linear(group=rows)", r"group=rows must be a number of columns, channel or tensor"),
        ("linear(bits)", r"'bits' is no option=value; options: bits, group, symmetric, scale"),
        ("linear(symmetric=1)", r"symmetric=1 must be true or false"),
        ("linaer", r"unknown weight format 'linaer'; known formats: .*linear"),
        ("linear(bits=4", r"cannot read the weight format"),
    ],
)
def test_what_cannot_be_read(text, message):
    with pytest.raises(FormatError, match=message):
        formats.parse(text)


def test_what_cannot_be_held(weight):
    with pytest.raises(FormatError, match=r"groups of 64 do not divide rows of 96; legal: group=32, 16, 8, channel"):
        formats.parse("linear(group=64)").encode(weight)
    with pytest.raises(FormatError, match="NaN"):
        formats.parse("linear").encode(weight * torch.nan)
    with pytest.raises(FormatError, match="use scale=f32"):
        formats.parse("linear").encode(weight * 1e8)
