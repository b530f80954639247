"""Sums and products of formats: their text, bytes and expressions; SLaB and compensation against what they improve."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphc
from graphc import formats
from graphc.errors import FormatError
from graphc.graph import Graph
from graphc.moments import loss
from graphc.structure import Structure

SHAPE = (96, 128)
SLAB = "low_rank(rank=1) * binary(scale=false) + unstructured(density={}); rounds=8"
TEXTS = [
    "linear(bits=2,group=32) + low_rank(rank=4)",
    "vector(d=8) + vector(d=2,codewords=16) + binary",
    "low_rank(rank=1) * binary(scale=false)",
    "binary(scale=false) * linear(bits=4)",
    "unstructured(density=0.25) + low_rank(rank=1) * binary(scale=false)",
]


@pytest.fixture(scope="module")
def weight() -> torch.Tensor:
    w = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)) * 0.05
    return w * torch.linspace(0.5, 2, 128)


@pytest.fixture(scope="module")
def moments() -> torch.Tensor:
    """A few directions of the inputs hold most of their energy, as in trained networks."""
    generator = torch.Generator().manual_seed(2)
    mix = torch.randn(128, 128, generator=generator) * torch.arange(1, 129) ** -0.8
    x = torch.randn(2048, 128, generator=generator) @ mix.t()
    return (x.t() @ x / 2048).double()


def measured(text: str, weight: torch.Tensor, moments: torch.Tensor, given: torch.Tensor | None) -> tuple[float, float]:
    """Loss, and bits for each weight."""
    chosen = formats.parse(text)
    parts = chosen.encode(weight, given)
    return loss(weight - chosen.decode(parts, SHAPE), moments), chosen.bytes(parts) * 8 / weight.numel()


@pytest.mark.parametrize("text", TEXTS)
def test_text_expression_and_bytes(text, weight):
    chosen = formats.parse(text)
    assert str(chosen) == text
    graph = Graph("g", Structure.of(((), {})), Structure.of(0))
    parts = chosen.encode(weight)
    found = formats.recognize(chosen.express(graph, parts, SHAPE, "w"))
    assert str(found.format) == text
    assert found.format.label == chosen.label
    assert {part: str(stored.target) for part, stored in found.parts.items()} == {part: f"w.{part}" for part in parts}
    assert chosen.bytes(parts) == sum(tensor.nbytes for tensor in graph.weights.values())


def test_terms_take_what_is_left_and_factors_signs_and_magnitudes(weight):
    both = formats.parse("linear(bits=4,group=32) + linear(bits=8,group=32)")
    parts = both.encode(weight)
    first = formats.parse("linear(bits=4,group=32)")
    alone = first.encode(weight)
    assert all(torch.equal(parts[f"0.{part}"], tensor) for part, tensor in alone.items())
    decoded = both.decode(parts, SHAPE)
    assert (decoded - weight).abs().max() < 0.02 * (first.decode(alone, SHAPE) - weight).abs().max()
    product = formats.parse("linear(scale=f32) * binary")
    torch.testing.assert_close(product.decode(product.encode(weight), SHAPE), weight, rtol=0, atol=2e-3)


def test_more_rounds_lose_no_more(weight, moments):
    losses = [
        measured(f"vector(d=8,iterations=5) + vector(d=8,iterations=5){rounds}", weight, moments, moments)[0]
        for rounds in ("", "; rounds=3")
    ]
    assert losses[1] <= losses[0]
    assert losses[0] < measured("vector(d=8,iterations=5)", weight, moments, moments)[0]


@pytest.mark.parametrize("density", [0.375, 0.1875])
def test_slab_against_wanda_magnitude_and_sparse_plus_low_rank(density, weight, moments):
    """papers.md section 7: smaller at equal bits, the mask counted. The other sum's rank fills SLaB's bits."""
    slab, bits = measured(SLAB.format(density), weight, moments, moments)
    others = {
        "wanda": (f"unstructured(density={density + 0.1})", moments),
        "magnitude": (f"unstructured(density={density + 0.1})", None),
        "sparse and low rank": (f"unstructured(density={density}) + low_rank(rank=3); rounds=8", moments),
    }
    for name, (text, given) in others.items():
        other, taken = measured(text, weight, moments, given)
        assert taken >= bits, name
        assert slab < other, name


def test_compensation(weight, moments):
    """papers.md section 22: no term, a plain one, a whitened one; the leading directions hold the whitened error."""
    base = formats.parse("linear(bits=2,group=32)")
    error = (weight - base.decode(base.encode(weight), SHAPE)).double()
    root = torch.linalg.cholesky(moments)
    none = loss(error, moments)
    rank = formats.parse("low_rank(rank=8)")
    losses = []
    for given in (None, moments):
        losses.append(loss(error - rank.decode(rank.encode(error.float(), given), SHAPE), moments))
    assert losses[1] < 0.5 * losses[0] < 0.5 * none
    energy = [torch.linalg.svdvals(matrix).square() for matrix in (error, error @ root)]
    raw, whitened = (float(values[:8].sum() / values.sum()) for values in energy)
    assert raw < 0.3 and whitened > 0.7
    together = measured("linear(bits=2,group=32) + low_rank(rank=8)", weight, moments, moments)[0]
    assert together == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linear * linear", "of which one is binary"),
        ("binary * binary", "of which one is binary"),
        ("linear + ", "cannot read the weight format"),
        ("linear + sum", "unknown weight format"),
        ("linear; rounds=2", "after a sum"),
        ("linear + binary; turns=2", "must be rounds=number"),
        ("linear + binary; rounds=x", "must be rounds=number"),
        ("linear + binary; rounds=0", "rounds must be a number from 1"),
    ],
)
def test_illegal(text, message):
    with pytest.raises(FormatError, match=message):
        formats.parse(text)


def test_plus_in_an_option_is_no_sum():
    assert formats.parse("linear(damping=1e+0)").damping == 1.0


@pytest.mark.parametrize(
    ("text", "templates"),
    [
        ("linear(bits=4,group=32) + low_rank(rank=4,factors=int8)", ["compressed product"] * 3),
        ("vector(codewords=16) + vector(d=8,codewords=16,codebooks=2)", ["codeword product"] * 2),
        ("sparse + linear(bits=2,group=32)", ["compressed product", "sparse product"]),
    ],
)
def test_split_sums_are_read_as_stored(text, templates):
    """The small form is the fast form: nothing is decoded at load, and the sum is part of the last kernel."""
    x, seen = torch.randn(3, 64), []
    artifact = graphc.compile(
        nn.Sequential(nn.Linear(64, 48), nn.ReLU()).eval(),
        example_inputs=(x,),
        calibration=[x],
        pipeline=f'compress{{data=true,format="{text}"}},split_sums,split_low_rank,fuse_operators',
        watch=[lambda step, before, after: seen.append(after)],
    )
    torch.testing.assert_close(torch.from_numpy(artifact.run(x)), seen[-1].run(x), rtol=1e-4, atol=1e-4)
    assert artifact.plan["init_steps"] == 0
    assert [step["template"] for step in artifact.plan["steps"]] == templates
    assert not any(row.reason for row in artifact.report().rows)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(4, 16, 3, padding=1), nn.Linear(16 * 16, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).flatten(1))


def test_compiled_artifact_computes_what_torch_does():
    """Every new format and expression, with the data, in one file; the report says what no kernel reads as stored."""
    x = torch.randn(2, 4, 4, 4)
    model = Network().eval()
    passes = 'compress{{layers=[conv],data=true,format="{}"}},compress{{layers=[head],data=true,format="{}"}}'
    for conv, head in (
        ("linear(bits=4,group=12,rounding=gptq)", "low_rank(rank=1) * binary + unstructured(density=0.1); rounds=2"),
        ("unstructured(density=0.4)", "linear(bits=2,group=32,rounding=adaround,iterations=5) + low_rank(rank=2)"),
        ("binary", "vector(d=8,codewords=16) + vector(d=8,codewords=16)"),
    ):
        seen: list[Graph] = []
        artifact = graphc.compile(
            model,
            example_inputs=(x,),
            calibration=[x, x + 1],
            pipeline=passes.format(conv, head) + ",fuse_operators",
            watch=[lambda step, before, after: seen.append(after)],  # noqa: B023
        )
        torch.testing.assert_close(torch.from_numpy(artifact.run(x)), seen[-1].run(x), rtol=1e-4, atol=1e-4)
        (row,) = (row for row in artifact.report().rows if row.name == "head" and "linear" in row.op)
        assert row.format == formats.parse(head).label or "sparse" in row.format
        assert "is decoded at load" in row.reason
        assert row.bytes == 40 * 4 + sum(
            part.nbytes for name, part in seen[-1].weights.items() if name.startswith("head.weight")
        )
