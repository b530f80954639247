"""The vector format: what it stores, how near it comes to the weight, what it refuses, and its text."""

from __future__ import annotations

import pytest
import torch

from graphc import formats
from graphc.errors import FormatError
from graphc.formats.vector import Vector
from graphc.graph import Graph
from graphc.moments import loss
from graphc.passes.compress import Compress
from graphc.pipeline import PassContext
from graphc.structure import Structure
from graphc.tensor_type import TensorType

TEXTS = [
    "vector",
    "vector(d=8)",
    "vector(d=2,codewords=16)",
    "vector(codewords=64,scale=false)",
    "vector(codewords=16,codebooks=6)",
    "vector(d=5)",
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


def test_errors_count_by_the_inputs_that_they_meet(weight):
    x = torch.randn(512, 96) * torch.logspace(-1, 1, 96) + 0.2
    moments = (x.t() @ x / 512).double()
    for text in ("vector", "vector(d=5,codewords=64)", "vector(d=8,scale=false)", "vector(assignment=cosine)"):
        chosen = formats.parse(text)
        lost = [
            loss(weight - chosen.decode(chosen.encode(weight, given), (48, 96)), moments) for given in (None, moments)
        ]
        assert lost[1] < 0.7 * lost[0], text


def test_uniform_weights_change_nothing(weight):
    chosen = formats.parse("vector(d=2,codewords=16,scale=false)")
    one, other = chosen.encode(weight), chosen.encode(weight, torch.eye(96))
    torch.testing.assert_close(one["codebook"], other["codebook"])


def test_cosine_takes_the_smallest_angle(weight):
    chosen = formats.parse("vector(d=4,codewords=16,assignment=cosine)")
    parts = chosen.encode(weight)
    words = torch.nn.functional.normalize(parts["codebook"].float())
    pieces = torch.nn.functional.normalize(weight.unflatten(1, (-1, 4)), dim=-1)
    best = (pieces @ words.t()).amax(-1)
    decoded = torch.nn.functional.normalize(chosen.decode(parts, (48, 96)).unflatten(1, (-1, 4)), dim=-1)
    torch.testing.assert_close((pieces * decoded).sum(-1), best, rtol=1e-3, atol=1e-3)
    scaled = chosen.decode(parts, (48, 96))
    projection = (scaled * weight).sum(1) / scaled.square().sum(1)
    torch.testing.assert_close(projection, torch.ones(48), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("vector", 48 * 24 + 256 * 4 * 2 + 48 * 4),
        ("vector(d=8,scale=false)", 48 * 12 + 256 * 8 * 2),
        ("vector(d=2,codewords=16)", 48 * 24 + 16 * 2 * 2 + 48 * 4),
        ("vector(codewords=16,codebooks=6)", 48 * 12 + 6 * 16 * 4 * 2 + 48 * 4),
        ("vector(d=5,codewords=8)", 48 * 8 + 8 * 5 * 2 + 48 * 4),  # 20 pieces of 3 bits: 7.5 bytes a row
    ],
)
def test_bytes(text, count, weight):
    chosen = formats.parse(text)
    assert chosen.bytes(chosen.encode(weight)) == count


@pytest.mark.parametrize("text", TEXTS[:-1])
def test_every_piece_has_its_nearest_codeword(text, weight):
    chosen = formats.parse(text)
    parts = chosen.encode(weight)
    scale = weight.square().mean(1, keepdim=True).sqrt() if chosen.scale else torch.ones(48, 1)
    rows = (weight / scale).unflatten(1, (chosen.codebooks, -1, chosen.d))
    books = parts["codebook"].float().reshape(chosen.codebooks, 1, -1, chosen.d)
    ways = (rows.unsqueeze(3) - books).square().sum(4).flatten(1, 2)
    stored = chosen.decode({**parts, **({"scale": scale} if chosen.scale else {})}, (48, 96)) / scale
    chosen_error = (stored - weight / scale).square().sum(1)
    torch.testing.assert_close(chosen_error, ways.amin(2).sum(1), rtol=1e-3, atol=1e-3)


def test_kmeans_finds_separate_clusters():
    centres = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    pieces = centres[torch.randint(4, (300,))] + torch.randn(300, 2) * 0.01
    chosen = Vector(d=2, codewords=4, scale=False)
    parts = chosen.encode(pieces.reshape(30, 20))
    assert (parts["codebook"].float() - centres[:, None]).square().sum(2).amin(1).max() < 1e-4
    assert (chosen.decode(parts, (30, 20)) - pieces.reshape(30, 20)).abs().max() < 0.06


def test_more_codewords_than_pieces_store_the_weight():
    weight = torch.randn(4, 8).to(torch.float16).float()
    chosen = Vector(d=4, scale=False)
    assert torch.equal(chosen.decode(chosen.encode(weight), (4, 8)), weight)


def test_a_row_of_noughts_stays(weight):
    weight[3] = 0
    chosen = Vector(codewords=256)
    decoded = chosen.decode(chosen.encode(weight), (48, 96))
    assert decoded.isfinite().all()
    assert decoded[3].abs().max() < 0.5


def test_scales_level_rows_of_different_size(weight):
    uneven = weight * torch.logspace(-2, 2, 48).unsqueeze(1)

    def error(chosen: Vector) -> float:
        difference = chosen.decode(chosen.encode(uneven), (48, 96)) - uneven
        return float((difference.square().mean(1) / uneven.square().mean(1)).max())

    assert error(Vector(d=2, codewords=64)) < 0.2 < error(Vector(d=2, codewords=64, scale=False))


def test_the_same_weight_and_seed_give_the_same_parts(weight):
    first, second, other = (formats.parse(text).encode(weight) for text in ("vector", "vector", "vector(seed=1)"))
    assert all(torch.equal(first[part], second[part]) for part in first)
    assert not torch.equal(first["codebook"], other["codebook"])


def test_a_shared_codebook_serves_all_layers():
    graph = Graph("g", Structure.of(((torch.zeros(1, 32),), {})), Structure.of((0, 1)))
    x = graph.add_input("x", TensorType((1, 32), torch.float32))
    results = []
    for i, size in enumerate((0.1, 10.0)):
        w = graph.add_weight(f"w{i}", torch.randn(40, 32) * size)
        results.append(graph.call(torch.ops.aten.linear.default, x, w, None))
    graph.set_output(results)
    result = Compress(format="vector(d=2,codewords=64,shared=true)").run(graph, PassContext())
    assert torch.equal(result.weights["w0.codebook"], result.weights["w1.codebook"])
    for i in range(2):
        decoded = result.output.args[0][i].args[1]
        assert decoded.target is torch.ops.aten.mul.Tensor
    given = torch.randn(1, 32)
    for got, want in zip(result.run_flat([given]), graph.run_flat([given]), strict=True):
        assert (got - want).norm() < 0.35 * want.norm()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vector(codewords=48)", "codewords=48 must be a power of two"),
        ("vector(d=0)", "d=0 must be a number from 1"),
        ("vector(d=x)", "d=x must be a number"),
        ("vector(codebook=1)", "no option=value"),
        ("vector(codebooks=0)", "codebooks=0 must be a number from 1"),
        ("vector(codebooks=2,shared=true)", "one codebook for all layers"),
    ],
)
def test_illegal_options(text, message):
    with pytest.raises(FormatError, match=message):
        formats.parse(text)


def test_codebooks_share_the_pieces_of_a_row_evenly(weight):
    with pytest.raises(FormatError, match=r"24 pieces in a row for 5 codebooks; legal: 1, 2, 3, 4, 6, 8, 12, 24"):
        Vector(codebooks=5).encode(weight)


def test_each_run_of_columns_has_codewords_of_its_own():
    """Two halves of another nature: at the same codes, two codebooks lose less than one."""
    generator = torch.Generator().manual_seed(3)
    halves = [torch.randn(512, 8, generator=generator).cumsum(1), torch.randn(512, 8, generator=generator).sign()]
    weight = torch.cat([half / half.std() for half in halves], 1)
    one, two = Vector(d=4, codewords=16, scale=False), Vector(d=4, codewords=16, codebooks=2, scale=False)
    errors = [float((form.decode(form.encode(weight), (512, 16)) - weight).square().mean()) for form in (one, two)]
    assert errors[1] < 0.8 * errors[0]
    parts = two.encode(weight)
    assert torch.equal(parts["codebook"][0], one.encode(weight[:, :8])["codebook"])


@pytest.mark.parametrize(("weight", "message"), [([float("nan")] * 4, "NaN"), ([1e6, 1e6, 2.0, 1.0], "fit f16")])
def test_illegal_weights(weight, message):
    with pytest.raises(FormatError, match=message):
        Vector(d=2, scale=False).encode(torch.tensor([weight]))
