"""Recovery: what is trained is what is stored, in the same bytes, and it answers more as the original does."""

from __future__ import annotations

import re

import pytest
import torch

from graphc import reproducer
from graphc.analysis.outputs import change
from graphc.formats import format_names
from graphc.passes.recover import Recover
from graphc.pipeline import PassContext, PassFailure, Pipeline
from graphc.training.distillation import Distillation
from graphc.training.loop import Training
from graphc.training.recovery import recover, recoverable
from graphc.training.stored_weight import expressed
from graphc.verifier import verify

FORMS = [
    "linear(bits=2)",
    "linear(bits=3,group=16,symmetric=false)",
    "linear(bits=4,group=tensor)",
    "linear",
    "linear(symmetric=false)",
    "vector(d=4,codewords=16)",
    "vector(d=5,codewords=8)",
    "vector(d=4,codewords=16,shared=true)",
    "vector(d=4,codewords=16,codebooks=4)",
    "vector(d=4,codewords=8) + vector(d=4,codewords=8)",
    "binary",
    "low_rank(rank=4)",
    "low_rank(rank=4,factors=int8)",
    "sparse",
    "sparse(values=int8)",
    "block_sparse",
    "unstructured",
    "linear(bits=2) + low_rank(rank=2)",
    "binary * low_rank(rank=2) + unstructured(density=0.1)",
]
# Where the kept values lie; what signs decode to.
FIXED = ("positions", "mask", "gaps", "zero_point")
SIGNS = torch.tensor([[-1.0], [1.0]], dtype=torch.float16)


def test_every_format_is_among_them():
    assert set(format_names()) <= {word for form in FORMS for word in re.findall(r"\w+", form)}


def stored(graph):
    once = Pipeline("eliminate_common_subexpressions,drop_unused").run(graph)
    return sorted((str(tensor.dtype), tuple(tensor.shape)) for tensor in once.weights.values())


@pytest.fixture
def data(digits):
    return [[batch] for batch in digits[0][:400].split(100)]


def compressed(teacher, form, data, moments=True):
    ctx = PassContext(calibration=data)
    return Pipeline(f'compress{{format="{form}",unfit=keep,data={str(moments).lower()}}}').run(teacher, ctx)


@pytest.mark.parametrize("form", FORMS)
def test_the_formats_and_their_bytes_stay(form, teacher, data, digits):
    graph = compressed(teacher, form, data)
    made = recover(teacher, graph, lambda step: data[step % 4], Training(6, 1e-3))
    verify(made)
    assert stored(made) == stored(graph)


@pytest.mark.parametrize("form", FORMS)
def test_all_that_is_stored_is_trained(form, teacher, data):
    graph = compressed(teacher, form, data)
    before = {name: value.clone() for name, value in graph.weights.items()}
    made = recover(teacher, graph, lambda step: data[step % 4], Training(10, 2e-2))
    stays = {name for name, value in before.items() if any(equal(value, other) for other in made.weights.values())}
    fixed = (*FIXED, ".0.0.codes")  # the signs of a product follow -1 and 1, which are far from turning
    assert stays == {name for name, value in before.items() if name.endswith(fixed) or equal(value, SIGNS)}
    assert all(equal(value, before[name]) for name, value in graph.weights.items()), "what was given is as it was"


def equal(one, other):
    return one.dtype == other.dtype and torch.equal(one, other)


@pytest.mark.parametrize("form", ["linear(bits=2)", "linear(bits=3,group=16,range=mse,rounding=gptq)"])
def test_it_starts_at_what_was_encoded(form, teacher, data, digits):
    """Codes of GPTQ are not the nearest ones, and are not lost by rounding anew."""
    graph = compressed(teacher, form, data)
    torch.testing.assert_close(expressed(recoverable(teacher, graph)).run(digits[2]), graph.run(digits[2]))


@pytest.mark.parametrize("options", [None, Distillation()])
@pytest.mark.parametrize("form", ["linear(bits=2)", "vector(d=8,codewords=16)"])
def test_it_comes_nearer_to_the_original_on_held_back_data(form, options, teacher, data, digits):
    graph = compressed(teacher, form, data)
    made = recover(teacher, graph, lambda step: data[step % 4], Training(100, 1e-3, warmup=10), options)
    held_back = [[digits[2]]]
    assert change(teacher, made, held_back).kl < 0.7 * change(teacher, graph, held_back).kl


def test_the_pass_is_the_same_for_a_seed_and_keeps_what_was_if_learning_does_not_help(teacher, data, digits):
    ctx = PassContext(calibration=data)
    spec = 'compress{format="linear(bits=2)"},recover{steps=10}'
    one, other = (Pipeline(spec).run(teacher, ctx) for _ in range(2))
    assert torch.equal(one.run(digits[2]), other.run(digits[2]))
    plain = Pipeline('compress{format="linear(bits=2)"}').run(teacher, ctx)
    wild = Recover(steps=1, learning_rate=1e3).run(plain, PassContext(calibration=data, original=teacher))
    assert wild is plain


def test_a_crash_in_it_can_be_run_again(teacher, data, tmp_path, monkeypatch):
    """The reproducer holds the original graph too, without which there would be nothing to recover."""

    def crash(original, graph, *args, **kwargs):
        raise RuntimeError(f"{len(original.weights)} and {len(graph.weights)} weights")

    monkeypatch.setattr("graphc.passes.recover.recover", crash)
    ctx = PassContext(calibration=data)
    with pytest.raises(PassFailure, match="6 and 12 weights") as failure:
        Pipeline('compress{format="linear(bits=2)"},recover{steps=10}').run(teacher, ctx)
    folder = reproducer.write(failure.value, ctx, tmp_path)
    with pytest.raises(PassFailure, match="6 and 12 weights"):
        reproducer.run(folder)
