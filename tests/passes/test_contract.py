"""What every pass must do on every network: keep its input, verify, round-trip, be idempotent, keep its promise."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from graphc.pipeline import PRESETS, PassContext, Pipeline, find_pass, pass_names
from graphc.tensor_type import TensorType
from graphc.text import dump, parse
from graphc.verifier import verify

# What comes before a pass may matter: alone, after the clean-up, and where it stands in the presets.
CLEAN = "canonicalize,fold_constants,fold_batchnorm,eliminate_common_subexpressions,drop_unused"
PREFIXES = ("", CLEAN, f"{CLEAN},quantize", f"{CLEAN},quantize{{calibration=minmax}},integer_arithmetic,drop_unused")


@pytest.mark.parametrize("prefix", PREFIXES, ids=["alone", "clean", "quantized", "integer"])
@pytest.mark.parametrize("name", pass_names())
def test_contract(name, prefix, traced, network, relative_error, promised):
    ctx = PassContext(calibration=traced.calibration)
    graph, expected = _prepared(traced.name, prefix, network)
    before = dump(graph)
    item = find_pass(name)()
    result = item.run(graph, ctx)
    assert dump(graph) == before, "the pass changed its input"
    verify(result)
    assert dump(parse(dump(result), result.weights)) == dump(result)
    assert result.inputs == graph.inputs
    assert result.outputs == graph.outputs
    assert [node.name for node in result.placeholders] == [node.name for node in graph.placeholders]
    assert _types(result) == _types(graph)
    if dump(result) == before:
        assert result is graph, "the pass found nothing and must return the very graph it was given"
    again = item.run(result, ctx)
    assert again is result or dump(again) == dump(result), "a second run changes the graph"
    for inputs, values in zip(traced.calibration, expected, strict=False):
        error = relative_error(values, _real(result, inputs))
        assert error <= promised[item.fidelity], f"the results change by {error:.2g}"


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_keep_the_signature_and_the_sense(preset, traced, relative_error, promised):
    ctx = PassContext(calibration=traced.calibration)
    result = Pipeline(PRESETS[preset]).run(traced.graph, ctx)
    assert _types(result) == _types(traced.graph)
    error = relative_error(_real(traced.graph, traced.inputs), _real(result, traced.inputs))
    assert error <= promised["exact" if preset == "float" else "lossy"]


def test_the_order_of_the_batch_does_not_matter(network, relative_error):
    """Calibration sees all batches: the result is the same in any order."""
    known = network("residual")
    one, other = (
        Pipeline(PRESETS["int8"]).run(known.graph, PassContext(calibration=batches))
        for batches in (known.calibration, known.calibration[::-1])
    )
    assert relative_error(_real(one, known.inputs), _real(other, known.inputs)) <= 0.02


@cache
def _prepared(name, prefix, network):
    """A network after some passes, and its results on two batches."""
    batches = network(name).calibration
    graph = Pipeline(prefix).run(network(name).graph, PassContext(calibration=batches))
    return graph, [_real(graph, inputs) for inputs in batches[:2]]


def _types(graph) -> list[TensorType]:
    return [node.meta["type"] for node in [*graph.placeholders, *graph.output.args[0]]]


def _real(graph, inputs) -> list[torch.Tensor]:
    """The floating-point results: an argmax may fall either way when logits change in the last digit."""
    return [value for value in graph.run_flat(list(inputs)) if value.is_floating_point()]
