"""Quantized graphs with gradients: the same values, LSQ's gradients, roundings that help, training that resumes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graphc.errors import TrainingError
from graphc.frontends import trace
from graphc.passes.quantize import Quantize
from graphc.passes.reconstruct import Reconstruct
from graphc.pipeline import PassContext
from graphc.text import dump
from graphc.training import fake_quantization, reconstruction
from graphc.training.distillation import Distillation
from graphc.training.fake_quantization import FakeActivation, FakeQuantized, FakeWeight, LearnedRounding
from graphc.training.loop import Training
from graphc.training.quantization import train_quantized


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


@pytest.fixture
def small():
    """A residual network, its batches, and a context that calibrates on them."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Block(8), Block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()  # fmt: skip
    batches = [[torch.randn(8, 3, 6, 6)] for _ in range(4)]
    return trace(model, tuple(batches[0])), batches, PassContext(calibration=batches)


def error(original, graph, batches) -> float:
    pairs = [(original.run_flat(batch)[0], graph.run_flat(batch)[0]) for batch in batches]
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(a.square().sum() for a, _ in pairs))


@pytest.mark.parametrize("bits", [(8, 8), (4, 3), (2, 2)])
def test_the_values_are_those_of_the_graph(small, bits):
    original, batches, ctx = small
    quantized = Quantize(*bits).run(original, ctx)
    model = FakeQuantized(original, quantized).eval()
    for batch in batches:
        assert torch.equal(model(batch)[0], quantized.run_flat(batch)[0])
    assert dump(model.graph()) == dump(quantized)


def test_values_in_bfloat16_are_near_and_train(small):
    original, batches, ctx = small
    quantized = Quantize(4, 8).run(original, ctx)
    model = FakeQuantized(original, quantized, precision=torch.bfloat16).train()
    found = model(batches[0])[0]
    expected = quantized.run_flat(batches[0])[0]
    assert found.dtype == torch.float32 and not torch.equal(found, expected)
    assert float((found - expected).detach().norm() / expected.norm()) < 0.05
    found.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in model.parameters())


def test_the_gradient_of_a_step_is_lsqs():
    x = torch.tensor([[-9.0, -1.3, 0.4, 1.6, 9.0]])
    fake = FakeActivation(torch.tensor(0.5), 0, -8, 7)
    fake(x).sum().backward()
    steps = x / 0.5
    inside = (steps > -8) & (steps < 7)
    of_step = torch.where(inside, steps.round() - steps, steps.clamp(-8, 7)).sum()
    # The logarithm's gradient is s times the step's; 5 values, 15 steps.
    assert float(fake.step.logarithm.grad) == pytest.approx(float(of_step) * 0.5 / (5 * 15) ** 0.5, rel=1e-5)


def test_the_gradient_of_a_weight_passes_where_it_is_not_clipped():
    fake = FakeWeight(torch.tensor([[0.24, 5.0, -5.0]]), torch.tensor([0.1]), 4)
    fake().sum().backward()
    assert fake.weight.grad.tolist() == [[1.0, 0.0, 0.0]]


def test_a_learned_rounding_starts_at_the_weight_and_ends_beside_it():
    weight = torch.randn(4, 9) * 0.3
    rounding = LearnedRounding(weight, torch.full((4,), 0.1), 8)
    torch.testing.assert_close(rounding(), weight, rtol=0, atol=1e-5)
    rounding.soft = False
    assert torch.equal(rounding.codes(), (weight / 0.1).round().to(torch.int8))
    with torch.no_grad():
        rounding.logit.fill_(1.0)
    assert torch.equal(rounding.codes().float(), (weight / 0.1).floor() + 1)


@pytest.mark.parametrize("granularity", ["layer", "block"])
def test_reconstruction_beats_rounding_to_nearest(small, granularity):
    original, batches, ctx = small
    nearest = Quantize(3, 8, edge_bits=2, bias_correction=False).run(original, ctx)
    spec = Reconstruct(3, 8, edge_bits=2, granularity=granularity, iterations=60)
    learned = spec.run(original, ctx)
    assert error(original, learned, batches) < 0.7 * error(original, nearest, batches)
    assert dump(spec.run(original, ctx)) == dump(learned)


def test_reconstruction_tells_its_progress(small):
    original, batches, _ = small
    seen = []
    ctx = PassContext(calibration=batches, progress=lambda *said: seen.append(said))
    Reconstruct(4, iterations=3).run(original, ctx)
    told = [(done, total) for what, done, total in seen if what == "reconstructing"]
    assert told[-1][0] == told[-1][1] == 3 * 4  # the first layer, two blocks, the last layer
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_reconstruction_computes_each_operator_of_the_float_graph_once(small, monkeypatch):
    original, batches, ctx = small
    computed = []

    def evaluate(graph, nodes, *rest):
        if graph is original:
            computed.extend(nodes)
        return fake_quantization.evaluate(graph, nodes, *rest)

    monkeypatch.setattr(reconstruction, "evaluate", evaluate)
    Reconstruct(4, iterations=1).run(original, ctx)
    assert {node: computed.count(node) for node in original.calls} == dict.fromkeys(original.calls, len(batches))


@pytest.mark.parametrize("deep", [False, True])
def test_a_block_is_the_least_module_with_several_layers(small, deep):
    torch.manual_seed(0)

    def layer(*sizes):
        return nn.Sequential(nn.Conv2d(*sizes, 1), nn.ReLU()) if deep else nn.Conv2d(*sizes, 1)

    blocks = [nn.Sequential(layer(4, 8), layer(8, 8), layer(8, 4)) for _ in range(3)]
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(*blocks)).eval()
    ctx = PassContext(calibration=[[torch.randn(2, 3, 4, 4)]])
    original = trace(model, tuple(ctx.calibration[0]))
    fake = FakeQuantized(original, Quantize(4).run(original, ctx), LearnedRounding)
    assert [len(part.layers) for part in reconstruction.parts(fake, original, "block")] == [1, 3, 3, 3]
    assert [len(part.layers) for part in reconstruction.parts(fake, original, "layer")] == [1] * 10


def test_both_forms_of_a_value_that_a_layer_and_a_sum_read_are_learned(small):
    """A block's result in 8 bits and in 2: each is held against the float value, and each has a step of its own."""
    original, _, ctx = small
    start = Quantize(4, 2, bias_correction=False).run(original, ctx)
    fake = FakeQuantized(original, start, LearnedRounding)
    _, second, *others = reconstruction.parts(fake, original, "block")
    assert {reference.name for reference in second.outputs.values()} == {"relu_2"} and len(second.outputs) == 2
    assert all(reference is not None for part in (second, *others) for reference in part.inputs.values())
    learned = Reconstruct(4, 2, iterations=20).run(original, ctx)
    steps = [name for name in start.weights if name.endswith(".scale") and start.weights[name].dim() == 0]
    assert sum(".int2." in name for name in steps) == 2
    same = [name for name in steps if torch.equal(start.weights[name], learned.weights[name])]
    assert same == []


def test_an_infinite_mask_between_parts_is_reconstructed_through():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x, mask):
            held = torch.zeros_like(mask).masked_fill(mask < 0, -torch.inf)
            return self.last((self.first(x) + held).softmax(-1)) + held[..., :4].exp()

    torch.manual_seed(0)
    batches = [[torch.randn(4, 8), torch.randn(4, 8)] for _ in range(3)]
    original = trace(Masked().eval(), tuple(batches[0]))
    ctx = PassContext(calibration=batches)
    learned = Reconstruct(4, edge_bits=2, iterations=20).run(original, ctx)
    nearest = Quantize(4, edge_bits=2, bias_correction=False).run(original, ctx)
    assert error(original, learned, batches) <= error(original, nearest, batches)


def test_training_helps_and_a_killed_run_goes_on(small, tmp_path):
    original, batches, ctx = small
    quantized = Quantize(2, 2, edge_bits=2).run(original, ctx)

    def run(name, batch=lambda step: batches[step % 4]):
        options = Training(40, 5e-3, checkpoint=tmp_path / name, interval=10)
        return train_quantized(original, quantized, batch, options)

    trained = run("whole")

    def killed(step):
        if step == 25:
            raise KeyboardInterrupt
        return batches[step % 4]

    with pytest.raises(KeyboardInterrupt):
        run("killed", killed)
    assert dump(run("killed")) == dump(trained)

    def divergence(graph):
        pairs = [(original.run_flat(batch)[0], graph.run_flat(batch)[0]) for batch in batches]
        return sum(nn.functional.kl_div(b.log_softmax(-1), a.softmax(-1), reduction="sum") for a, b in pairs)

    assert divergence(trained) < 0.7 * divergence(quantized)


def test_a_second_training_goes_on_from_the_first_one_s_weights(small, tmp_path):
    original, batches, ctx = small
    quantized = Quantize(2, 2, edge_bits=2).run(original, ctx)
    seen = []

    def samples(step):
        seen.append(step)
        return batches[step % 4]

    def trained(*phases):
        return dump(train_quantized(original, quantized, samples, phases))

    first, second = Training(6, 1e-3, checkpoint=tmp_path / "first.safetensors"), Training(4, 1e-4)
    alone = trained(first)
    both = trained(first, second)  # the first is done, says its checkpoint
    assert seen == list(range(10))
    assert both != alone and both == trained(Training(6, 1e-3), second)


def test_training_says_what_a_batch_lacks(small):
    original, batches, ctx = small
    with pytest.raises(TrainingError, match="1 inputs and the labels"):
        train_quantized(
            original, Quantize(4).run(original, ctx), lambda step: batches[0], Training(1), Distillation(labels=1)
        )
    with pytest.raises(TrainingError, match="no layers that `quantize` quantized"):
        FakeQuantized(original, original)
