"""The low-rank format: near the best error there is, what it stores, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from graphc import formats
from graphc.errors import FormatError
from graphc.graph import Graph
from graphc.structure import Structure


def spectrum(rows: int, columns: int, power: float) -> torch.Tensor:
    """A matrix with the singular values i^-power."""
    u, v = (torch.linalg.qr(torch.randn(size, min(rows, columns))).Q for size in (rows, columns))
    return (u * torch.arange(1, min(rows, columns) + 1) ** -power) @ v.t()


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0])
def test_error_is_near_the_least_of_its_rank(power):
    weight = spectrum(256, 192, power)
    chosen = formats.parse("low_rank(rank=24)")
    error = (chosen.decode(chosen.encode(weight), (256, 192)) - weight).norm()
    least = torch.linalg.svdvals(weight)[24:].norm()
    assert least * 0.999 <= error <= least * 1.03


def test_a_matrix_of_that_rank_is_met():
    weight = torch.randn(40, 5) @ torch.randn(5, 30)
    chosen = formats.parse("low_rank(rank=5)")
    torch.testing.assert_close(chosen.decode(chosen.encode(weight), (40, 30)), weight, rtol=1e-4, atol=1e-4)


def test_text_expression_and_bytes():
    weight = torch.randn(40, 30)
    chosen = formats.parse("low_rank(rank=6)")
    assert str(chosen) == "low_rank(rank=6)"
    parts = chosen.encode(weight)
    assert chosen.bytes(parts) == 4 * 6 * 70
    assert torch.equal(parts["left"], chosen.encode(weight)["left"])
    graph = Graph("g", Structure.of(((), {})), Structure.of(0))
    found = formats.recognize(chosen.express(graph, parts, (40, 30), "w"))
    assert found.format == chosen
    assert {part: str(node.target) for part, node in found.parts.items()} == {"left": "w.left", "right": "w.right"}


def test_factors_in_int8_take_a_quarter_and_lose_little():
    weight = spectrum(64, 48, 0.5)
    wide, narrow = formats.parse("low_rank(rank=12)"), formats.parse("low_rank(rank=12,factors=int8)")
    parts = narrow.encode(weight)
    assert narrow.bytes(parts) == 12 * (64 + 48) + 2 * (64 + 12)
    errors = [(form.decode(form.encode(weight), (64, 48)) - weight).norm() for form in (wide, narrow)]
    assert errors[0] < errors[1] < 1.01 * errors[0]
    graph = Graph("g", Structure.of(((), {})), Structure.of(0))
    found = formats.recognize(narrow.express(graph, parts, (64, 48), "w"))
    assert found.format == narrow
    assert {part: str(node.target) for part, node in found.parts.items()} == {part: f"w.{part}" for part in parts}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("low_rank(rank=0)", "rank=0 must be"),
        ("low_rank(rank=20)", "up to rank=17"),
        ("low_rank", "up to rank=17"),
        ("low_rank(factors=int4)", "one of f32, int8"),
    ],
)
def test_illegal(text, message):
    with pytest.raises(FormatError, match=message):
        formats.parse(text).encode(torch.randn(40, 30))


def test_illegal_weight():
    with pytest.raises(FormatError, match="NaN"):
        formats.parse("low_rank(rank=1)").encode(torch.full((8, 8), float("nan")))
