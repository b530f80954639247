"""The training loop: a killed run goes on bit for bit, other runs' checkpoints are refused, and progress is told."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphc.errors import TrainingError
from graphc.training.loop import Samples, Training, train

TENSORS = (torch.linspace(-2, 2, 64).reshape(16, 4), torch.linspace(1, -1, 16).reshape(16, 1))


class Killed(Exception):
    pass


def network() -> nn.Module:
    torch.manual_seed(1)
    # Dropout: random numbers are part of what must come back.
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 1))


def noisy(tensors, generator):
    return [tensors[0] + 0.1 * torch.randn(tensors[0].shape, generator=generator), tensors[1]]


def run(options, steps=None):
    """The state after training; where `steps` is given, killed after so many."""
    module = network()

    def progress(what, done, total):
        if done == steps:
            raise Killed

    try:
        train(module, lambda batch: (module(batch[0]) - batch[1]).square().mean(), Samples(TENSORS, 5, 7, noisy),
              options, progress=progress)  # fmt: skip
    except Killed:
        return None
    return module.state_dict()


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("kills", [(4,), (1, 13), (6, 7, 8)])
def test_a_killed_run_goes_on_bit_for_bit(optimizer, kills, tmp_path):
    def options(checkpoint):
        return Training(20, 1e-2, optimizer, warmup=3, rates={"4.*": 2.0}, seed=3, checkpoint=checkpoint, interval=3)

    expected = run(options(None))
    for steps in kills:
        assert run(options(tmp_path / "c.safetensors"), steps) is None
    found = run(options(tmp_path / "c.safetensors"))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_finished_run_is_not_trained_again(tmp_path):
    options = Training(5, checkpoint=tmp_path / "c.safetensors")
    first, again = run(options), run(options, steps=1)
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_another_seed_gives_other_weights():
    first, second = run(Training(3, seed=0)), run(Training(3, seed=1))
    assert not torch.equal(first["0.weight"], second["0.weight"])


def test_other_options_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    run(Training(5, checkpoint=path))
    with pytest.raises(TrainingError, match=r"of a run with .*\"steps\": 5.*delete it"):
        run(Training(6, checkpoint=path))


def test_another_network_and_damage_are_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    options = Training(5, checkpoint=path)
    run(options)
    other = nn.Linear(4, 1)
    with pytest.raises(TrainingError, match="another network"):
        train(other, lambda batch: other(batch[0]).mean(), Samples(TENSORS, 5), options)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(TrainingError, match="cannot read the checkpoint"):
        run(options)


def test_progress_tells_the_loss_and_the_metric():
    told = []
    module = network()
    train(
        module,
        lambda batch: module(batch[0]).square().mean(),
        Samples(TENSORS, 5),
        Training(4, interval=2, what="recovering"),
        metric=lambda: float(module.training),
        progress=lambda *call: told.append(call),
    )
    assert [call[1:] for call in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert told[0][0].startswith("recovering: loss ")
    assert told[3][0].endswith(", metric 0")  # in evaluation mode
    assert module.training


def test_samples_are_drawn_once_an_epoch():
    samples = Samples((torch.arange(12),), 4, seed=5)
    epochs = [torch.cat([samples(step)[0] for step in range(3 * epoch, 3 * epoch + 3)]) for epoch in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(12)) for epoch in epochs)
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("sizes", [(3,), (8, 7), ()])
def test_samples_that_fill_no_batch_are_refused(sizes):
    with pytest.raises(TrainingError, match="cannot be drawn"):
        Samples(tuple(torch.zeros(size) for size in sizes), 4)


def test_a_loss_that_is_no_number_is_an_error():
    module = network()
    with pytest.raises(TrainingError, match="nan in step 0: lower learning_rate"):
        train(module, lambda batch: module(batch[0]).sum() * torch.nan, Samples(TENSORS, 5), Training(2))


def test_wrong_options_are_refused():
    for wrong in ({"steps": -1}, {"interval": 0}, {"learning_rate": 0.0}):
        with pytest.raises(TrainingError, match="must be"):
            Training(**wrong)
    with pytest.raises(TrainingError, match="no parameters"):
        train(nn.ReLU(), lambda batch: batch[0].sum(), Samples(TENSORS, 5), Training(1))
