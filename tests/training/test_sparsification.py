"""Penalties, TAMADE's threshold and masks: formulas, the search on a known loss, and the checks as inequalities."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from graphc.errors import TrainingError
from graphc.trainable import Trainable
from graphc.training.loop import Training, train
from graphc.training.sparsification import Penalty, largest_threshold, layer_weights, masked_trainable


@pytest.mark.parametrize(
    ("penalty", "gradient"),
    [
        (Penalty(0.3, beta=5.0), lambda w: 0.3 * 5 * w.sign() * torch.exp(-5 * w.abs())),
        (Penalty(0.3, "l1"), lambda w: 0.3 * w.sign()),
    ],
)
def test_gradients(penalty, gradient):
    weights = [torch.randn(3, 4).requires_grad_(), torch.tensor([0.0, -2.0, 0.01]).requires_grad_()]
    penalty(weights).backward()
    for weight in weights:
        torch.testing.assert_close(weight.grad, gradient(weight.detach()))


@pytest.mark.parametrize("keep", [0, 1, 2500, 8832])
def test_the_largest_threshold_is_found_exactly(keep, teacher):
    names = layer_weights(teacher)
    everything = torch.cat([teacher.weights[name].flatten() for name in names])
    assert len(everything) == 8832

    def loss(graph):
        """1 while at least `keep` weights are there, 2 then."""
        return 1.0 if sum(int(graph.weights[name].count_nonzero()) for name in names) >= keep else 2.0

    graph, found = largest_threshold(teacher, names, loss)
    assert (found.kept, found.count, found.loss) == (keep, 8832, 1.0)
    kept = torch.cat([graph.weights[name].flatten() for name in names])
    assert kept.count_nonzero() == keep
    assert torch.equal(kept != 0, everything.abs() > found.value)
    assert torch.equal(kept[kept != 0], everything[kept != 0])


def test_the_loss_stays_within_its_tolerance(teacher, digits):
    def loss(graph):
        return float(F.cross_entropy(graph.run(digits[0]), digits[1]))

    for delta in (0.0, 0.02, 0.5):
        graph, found = largest_threshold(teacher, layer_weights(teacher), loss, delta)
        assert loss(graph) == found.loss <= (1 + delta) * loss(teacher)


def test_masked_weights_stay_nought(teacher, samples):
    names = layer_weights(teacher, exclude=("4",))
    assert names == ["0.weight", "2.weight"]
    _, found = largest_threshold(teacher, names, lambda graph: 1.0)
    assert found.kept == 0
    graph = teacher.clone()
    graph.weights["0.weight"] = torch.where(graph.weights["0.weight"] > 0.05, graph.weights["0.weight"], 0.0)
    module = masked_trainable(graph, ["0.weight"])
    train(module, lambda batch: F.cross_entropy(module(batch[0]), batch[1]), samples, Training(5, weight_decay=0.1))
    after = module.graph().weights
    assert torch.equal(after["0.weight"] != 0, graph.weights["0.weight"] != 0)
    assert not torch.equal(after["0.weight"], graph.weights["0.weight"])
    assert not torch.equal(after["2.weight"], graph.weights["2.weight"])


def test_a_penalty_makes_a_network_sparser_than_magnitude_alone(teacher, samples, digits, accuracy):
    """papers.md, section 20, in short: at the same tolerance of the loss; graphc.tools.recovery has the figures."""

    def loss(graph):
        return float(F.cross_entropy(graph.run(digits[0]), digits[1]))

    names = layer_weights(teacher)
    ratios = {}
    for name, penalty in PENALTIES.items():
        module = Trainable(teacher)
        weights = [module.weight(each) for each in names]

        def objective(batch, module=module, penalty=penalty, weights=weights):
            return F.cross_entropy(module(batch[0]), batch[1]) + penalty(weights)

        train(module, objective, samples, Training(480, 3e-3))
        graph, found = largest_threshold(module.graph(), names, loss)
        assert accuracy(graph) > accuracy(teacher) - 1
        ratios[name] = found.ratio
    assert ratios["drr"] >= ratios["l1"]
    assert ratios["drr"] >= 4 * ratios["magnitude"]


PENALTIES = {"magnitude": Penalty(0), "l1": Penalty(2e-3, "l1"), "drr": Penalty(1e-3)}


def test_a_killed_sparsification_gives_the_same_mask(teacher, samples, tmp_path):
    names = layer_weights(teacher)

    def run(path, kill=None):
        module = Trainable(teacher)
        weights, penalty = [module.weight(each) for each in names], Penalty(1e-2)

        def progress(what, done, total):
            if done == kill:
                raise InterruptedError

        train(
            module,
            lambda batch: F.cross_entropy(module(batch[0]), batch[1]) + penalty(weights),
            samples,
            Training(12, 3e-3, checkpoint=path, interval=5),
            progress=progress,
        )
        return largest_threshold(module.graph(), names, lambda graph: float(graph.run(samples(0)[0]).square().mean()))

    with pytest.raises(InterruptedError):
        run(tmp_path / "c.safetensors", 8)
    (resumed, first), (undisturbed, second) = run(tmp_path / "c.safetensors"), run(None)
    assert first == second
    assert all(torch.equal(value, resumed.weights[name]) for name, value in undisturbed.weights.items())


def test_what_cannot_be_is_refused(teacher):
    for wrong in ((-1.0,), (1.0, "l0"), (1.0, "drr", 0.0)):
        with pytest.raises(TrainingError, match="must not be negative"):
            Penalty(*wrong)
    with pytest.raises(TrainingError, match="no weights to set to nought"):
        largest_threshold(teacher, [], lambda graph: 0.0)
