"""Integer weights: their ranges, and that what is stored takes its bits, is found again and computed with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphc
from graphc import quantized_weight
from graphc.graph import Graph
from graphc.structure import Structure


@pytest.mark.parametrize("bits", quantized_weight.BITS)
@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3, 1)])
def test_a_weight_is_found_as_it_was_stored(bits, shape):
    weight = torch.randn(shape)
    graph = Graph("g", Structure.of(((), {})), Structure.of(0))
    scale = quantized_weight.weight_scale(weight, bits)
    codes = quantized_weight.nearest(weight, scale, bits)
    node = quantized_weight.express(graph, codes, scale, bits, "w", "decoded")
    graph.set_output([node])
    found = quantized_weight.recognize(graph, node)
    assert found.bits == bits
    assert torch.equal(found.codes, codes)
    assert torch.equal(found.decoded(), graph.run_flat([])[0])
    assert graph.weights[found.stored].nbytes == shape[0] * -(-weight[0].numel() * bits // 8)
    other = graph.clone()
    found.store(other, -codes.clamp(min=quantized_weight.bounds(bits)[0] + 1), scale * 2)
    again = quantized_weight.recognize(other, other.output.args[0][0])
    assert torch.equal(again.codes, -codes.clamp(min=quantized_weight.bounds(bits)[0] + 1))
    assert torch.equal(again.scale, scale * 2)


def test_few_bits_get_the_range_of_the_least_error():
    weight = torch.randn(8, 200)
    for bits in (2, 3, 4):
        low, high = quantized_weight.bounds(bits)

        def error(scale, bits=bits):
            return (quantized_weight.nearest(weight, scale, bits) * scale[:, None] - weight).square().sum(1)

        whole = weight.abs().amax(1) / -low
        found = error(quantized_weight.weight_scale(weight, bits))
        assert (found <= error(whole)).all()
        assert found.sum() < 0.95 * error(whole).sum()
        assert quantized_weight.nearest(weight, whole / 4, bits).unique().tolist() == list(range(low, high + 1))


def test_the_artifact_stores_as_many_bits_as_are_asked_for():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 11)
    )
    batches = [torch.randn(1, 8, 6, 6) for _ in range(4)]
    weights = 16 * 72 + 11 * 16
    sizes = {}
    for bits in (8, 4, 3):
        spec = (
            f"canonicalize,quantize{{bits={bits},edge_bits=2,activation_bits={bits}}},integer_arithmetic,fuse_operators"
        )
        artifact = graphc.compile(model, example_inputs=(batches[0],), calibration=batches, pipeline=spec)
        sizes[bits] = artifact.size.weights
        reference = graphc.Pipeline(spec).run(
            graphc.trace(model, (batches[0],)),
            graphc.pipeline.PassContext(calibration=[[batch] for batch in batches]),
        )
        for batch in batches:
            assert (artifact.run(batch) == reference.run(batch).numpy()).all()
        constants = [operand.get("constant", "") for step in artifact.plan["steps"] for operand in step["operands"]]
        assert any("multiplier" in note and "float32" in note for note in constants), "the range of sums is known"
        if bits < 8:
            assert f"int{bits}" in {row.format for row in artifact.report().rows}
    assert sizes[8] - sizes[4] >= weights * 0.5 - 128
    assert sizes[8] - sizes[3] >= weights * 0.625 - 192


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = self.first(x).relu()
        return self.last((x + self.inner(x)).relu())


def test_a_sum_and_a_layer_read_a_value_in_bits_of_their_own():
    """In 2 bits throughout the sum would take four values; compiled, it gives the reference's bits."""
    torch.manual_seed(0)
    model, batches = Residual().eval(), [torch.randn(1, 4, 6, 6) for _ in range(4)]
    spec = "canonicalize,quantize{bits=2,activation_bits=2},integer_arithmetic,fuse_operators"
    artifact = graphc.compile(model, example_inputs=(batches[0],), calibration=batches, pipeline=spec)
    context = graphc.pipeline.PassContext(calibration=[[batch] for batch in batches])
    reference = graphc.Pipeline(spec).run(graphc.trace(model, (batches[0],)), context)
    for batch in batches:
        assert (artifact.run(batch) == reference.run(batch).numpy()).all()
    seen = {}
    reference.run_flat([batches[0]], lambda node, value: seen.setdefault(node.name, value))
    (narrow, wide) = (seen[name].unique().numel() for name in ("relu_int2", "relu_int8"))
    assert narrow <= 4 < wide
