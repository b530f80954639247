"""2:4 and block sparsity: what is kept, what is stored, and what is refused."""

from __future__ import annotations

import pytest
import torch

from graphc import formats
from graphc.errors import FormatError
from graphc.graph import Graph
from graphc.structure import Structure

TEXTS = [
    "sparse",
    "sparse(values=f32)",
    "sparse(values=int8)",
    "block_sparse",
    "block_sparse(height=4,width=8,density=0.25,values=f32)",
]


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(48, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("text", TEXTS)
def test_text_and_expression_are_read_back(text, weight):
    chosen = formats.parse(text)
    assert str(chosen) == text
    graph = Graph("g", Structure.of(((), {})), Structure.of(0))
    parts = chosen.encode(weight)
    found = formats.recognize(chosen.express(graph, parts, (48, 96), "w"))
    assert found.format == chosen
    assert {part: str(stored.target) for part, stored in found.parts.items()} == {part: f"w.{part}" for part in parts}


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("sparse", 48 * 48 * 2 + 48 * 12),
        ("sparse(values=int8)", 48 * 48 + 48 * 12 + 48 * 4),
        ("block_sparse", 36 * 64 * 2 + 3 * 3),  # 3 x 24 blocks, half of them
        ("block_sparse(height=4,width=8,density=0.25,values=f32)", 36 * 32 * 4 + 12 * 2),
    ],
)
def test_bytes(text, count, weight):
    chosen = formats.parse(text)
    assert chosen.bytes(chosen.encode(weight)) == count


@pytest.mark.parametrize(("values", "error"), [("f32", 0), ("f16", 2**-11), ("int8", 1 / 40)])
def test_two_of_four_largest_are_kept(values, error, weight):
    chosen = formats.parse(f"sparse(values={values})")
    decoded = chosen.decode(chosen.encode(weight), (48, 96)).unflatten(1, (-1, 4))
    fours = weight.unflatten(1, (-1, 4))
    least = fours.abs().sort(-1).values[..., 2:3]
    expected = torch.where(fours.abs() >= least, fours, 0.0)
    torch.testing.assert_close(decoded, expected, rtol=error, atol=error)
    assert (decoded != 0).sum(-1).max() == 2


def test_of_equal_magnitudes_the_first_two_are_kept():
    weight = torch.tensor([[1.0, -1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    chosen = formats.parse("sparse")
    assert chosen.decode(chosen.encode(weight), (1, 8)).tolist() == [[1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]


def test_blocks_of_largest_norm_are_kept(weight):
    chosen = formats.parse("block_sparse(height=8,width=4,density=0.5,values=f32)")
    decoded = chosen.decode(chosen.encode(weight), (48, 96))
    norms = (weight**2).unflatten(1, (-1, 4)).unflatten(0, (-1, 8)).sum((1, 3))
    kept = (decoded**2).unflatten(1, (-1, 4)).unflatten(0, (-1, 8)).sum((1, 3))
    assert int((kept > 0).sum()) == kept.numel() // 2
    torch.testing.assert_close(kept[kept > 0], norms[kept > 0])
    assert norms[kept > 0].min() >= norms[kept == 0].max()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparse(values=f8)", "values=f8 must be one of"),
        ("block_sparse(values=int8)", "values=int8 must be one of"),
        ("block_sparse(density=0)", "density=0 must be above 0"),
        ("block_sparse(height=x)", "height=x must be a number"),
    ],
)
def test_illegal_options(text, message):
    with pytest.raises(FormatError, match=message):
        formats.parse(text)


@pytest.mark.parametrize(
    ("text", "shape", "value", "message"),
    [
        ("sparse", (2, 6), 1.0, "6 are no whole number of fours"),
        ("sparse", (2, 8), 1e6, "do not fit f16"),
        ("sparse(values=int8)", (2, 8), float("inf"), "infinite"),
        ("block_sparse", (24, 8), 1.0, "24 rows are no whole number of blocks of 16; legal: 8, 4, 2, 1"),
        ("block_sparse(width=3)", (16, 8), 1.0, "8 columns are no whole number"),
    ],
)
def test_illegal_weights(text, shape, value, message):
    with pytest.raises(FormatError, match=message):
        formats.parse(text).encode(torch.full(shape, value))
