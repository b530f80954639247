"""Distillation: each term is what its formula says; a compressed and a pruned network recover; errors help."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphc
from graphc.errors import TrainingError
from graphc.pipeline import PassContext, Pipeline
from graphc.text import dump
from graphc.trainable import Trainable
from graphc.training.distillation import Distillation, DistillationLoss, distill
from graphc.training.loop import Samples, Training
from graphc.training.sparsification import largest_threshold, layer_weights


@pytest.fixture
def pruned(teacher):
    """The teacher with nine tenths of its weights nought."""
    names = layer_weights(teacher)
    graph = teacher.clone()
    for name in names:
        weight = graph.weights[name]
        graph.weights[name] = torch.where(weight.abs() > weight.abs().flatten().quantile(0.9), weight, 0.0)
    return graph


def loss_of(graph, teacher, options, x):
    return float(DistillationLoss(Trainable(graph), teacher, options)([x]).detach())


def test_each_term(teacher, pruned, digits):
    x, labels = digits[0][:20], digits[1][:20]
    node = next(node.name for node in teacher.calls if "relu" in node.name)
    student = Trainable(pruned)
    seen = {}
    for key, graph in (("teacher", teacher), ("student", pruned)):
        graph.run(x, observe=lambda each, value, key=key: seen.__setitem__((key, each.name), value))
    ours, theirs = pruned.run(x), teacher.run(x)
    p, q = (theirs / 3).softmax(1), (ours / 3).softmax(1)
    ours_there, theirs_there = seen["student", node], seen["teacher", node]
    terms = {
        Distillation(temperature=3): 9 * (p * (p / q).log()).sum(1).mean(),
        Distillation(logits=0, features=0.5, nodes=(node,)): 0.5
        * (ours_there - theirs_there).square().mean()
        / theirs_there.square().mean(),
        Distillation(logits=0, embedding=2): 2
        * (1 - (ours * theirs).sum(1) / ours.norm(dim=1) / theirs.norm(dim=1)).mean(),
        Distillation(logits=0, labels=1): F.cross_entropy(ours, labels),
    }
    for options, expected in terms.items():
        batch = [x, labels] if options.labels else [x]
        torch.testing.assert_close(DistillationLoss(student, teacher, options)(batch), expected)


@pytest.mark.parametrize(
    "options", [Distillation(), Distillation(logits=0, embedding=1), Distillation(logits=0.5, labels=0.5)]
)
def test_a_pruned_network_recovers(options, teacher, pruned, digits, accuracy):
    tensors = digits[:2] if options.labels else digits[:1]
    before = dump(teacher), dump(pruned)
    result = distill(pruned, teacher, Samples(tensors, 50), options, Training(240, 3e-3))
    assert (dump(teacher), dump(pruned)) == before
    assert accuracy(pruned) < 75
    assert accuracy(result) > accuracy(teacher) - 3


def test_features_are_learned(teacher, pruned, digits):
    node = next(node.name for node in teacher.calls if "relu" in node.name)
    options = Distillation(logits=0, features=1, nodes=(node,))
    result = distill(pruned, teacher, Samples(digits[:1], 50), options, Training(48, 2e-3))
    before, after = (loss_of(graph, teacher, options, digits[2]) for graph in (pruned, result))
    assert after < before / 4


@pytest.fixture
def narrow(samples):
    """A network 64-48-64-7 that knows nothing: its middle is narrower than the teacher's, and so are its results."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 7))
    batch = torch.export.Dim("batch", min=1, max=4096)
    return graphc.trace(model.eval(), (torch.randn(4, 64),), dynamic_shapes=({0: batch},))


def test_a_narrower_network_learns_features_and_embeddings_through_a_map(narrow, teacher, digits, samples):
    node = next(node.name for node in teacher.calls if "relu" in node.name)
    unlabelled = Samples(digits[:1], 50)
    for options in (
        Distillation(logits=0, features=1, nodes=(node,)),
        Distillation(logits=0, embedding=1),
    ):
        told = []
        distill(
            narrow,
            teacher,
            unlabelled,
            options,
            Training(96, 3e-3),
            progress=lambda what, *_, told=told: told.append(what),
        )
        first, last = (float(what.partition("loss ")[2]) for what in (told[0], told[-1]))
        assert last < first / 2
    loss = DistillationLoss(Trainable(narrow), teacher, Distillation(features=1, nodes=(node,), embedding=1, logits=0))
    assert [tuple(each.matrix.shape) for each in loss.maps] == [(64, 48), (10, 7)]


def test_what_no_map_brings_together_is_refused(teacher):
    def pooled(size):
        layers = nn.Conv2d(1, size, 3), nn.AdaptiveAvgPool2d(size), nn.Flatten()
        return graphc.trace(nn.Sequential(*layers).eval(), (torch.randn(2, 1, 8, 8),))

    ours, theirs = pooled(2), pooled(4)
    node = next(node.name for node in theirs.calls if node.meta["type"].shape == (2, 4, 4, 4))
    with pytest.raises(TrainingError, match=rf"features at %{node}: f32\[2, 2, 2, 2\] against the teacher's f32\[2, 4"):
        DistillationLoss(Trainable(ours), theirs, Distillation(features=1, nodes=(node,)))


def test_the_metric_sees_the_student_as_it_is(teacher, pruned, digits, accuracy):
    told = []
    training = Training(48, 3e-3, interval=24)
    found = distill(
        pruned, teacher, Samples(digits[:1], 50), None, training, accuracy, lambda what, *_: told.append(what)
    )
    assert f"metric {accuracy(found):.4g}" in told[-1]
    assert told[-1] != told[24]


def test_products_in_bf16_train_as_well(teacher, pruned, digits, accuracy):
    options = Distillation(precision="bf16")
    x = digits[0][:50]
    losses = (DistillationLoss(Trainable(pruned), teacher, each)([x]).detach() for each in (Distillation(), options))
    exact, rough = losses
    assert exact.dtype == rough.dtype == torch.float32
    assert float(exact) != float(rough)
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0)
    result = distill(pruned, teacher, Samples(digits[:1], 50), options, Training(240, 3e-3))
    assert accuracy(result) > accuracy(teacher) - 3


def test_of_a_compressed_network_the_floats_are_trained(teacher, digits):
    student = Pipeline('compress{format="linear(bits=2)"}').run(teacher, PassContext())
    result = distill(student, teacher, Samples(digits[:1], 50), Distillation(), Training(48, 5e-3))
    loss = [loss_of(graph, teacher, Distillation(), digits[2]) for graph in (student, result)]
    assert loss[1] < loss[0]
    changed = {name for name, value in student.weights.items() if not torch.equal(value, result.weights[name])}
    assert changed == {name for name in student.weights if name.endswith(("bias", "scale"))}
    assert all(value.dtype == result.weights[name].dtype for name, value in student.weights.items())


def test_gradients_do_not_pass_quantized_activations(teacher, digits):
    student = Pipeline("quantize").run(teacher, PassContext(calibration=[[digits[0][:4]]]))
    with pytest.raises(TrainingError, match=r"graphc\.quantize.*before its activations are quantized"):
        distill(student, teacher, Samples(digits[:1], 50))


def test_what_cannot_be_is_refused(teacher, pruned, digits):
    with pytest.raises(TrainingError, match=r"no node of both graphs; these are: .*relu"):
        DistillationLoss(Trainable(pruned), teacher, Distillation(features=1, nodes=("nowhere",)))
    with pytest.raises(TrainingError, match="a batch has 1 tensors; expected 1 inputs and the labels"):
        DistillationLoss(Trainable(pruned), teacher, Distillation(labels=1))([digits[0]])
    for wrong in ({"logits": -1}, {"logits": 0}, {"temperature": 0}, {"features": 1}):
        with pytest.raises(TrainingError):
            Distillation(**wrong)


def test_the_threshold_search_and_distillation_work_together(teacher, digits, accuracy):
    x, labels = digits[0], digits[1]

    def loss(graph):
        return float(F.cross_entropy(graph.run(x), labels))

    small, found = largest_threshold(teacher, layer_weights(teacher), loss, delta=3)
    assert found.ratio > 1.3
    result = distill(small, teacher, Samples((x,), 50), training=Training(24, 1e-3))
    assert accuracy(result) >= accuracy(small) - 0.5
