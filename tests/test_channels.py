"""Coupled channels: which belong together, and that a graph without channels that do nothing computes the same."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import graphc
from graphc.channel_importance import taylor
from graphc.channels import FIXED, couple
from graphc.cost import macs
from graphc.errors import CalibrationError, PassError
from graphc.narrowing import RemainingMacs, narrow
from graphc.passes.prune_channels import PruneChannels
from graphc.pipeline import PassContext
from graphc.tensor_type import TensorType
from graphc.tools.zoo.cifar_resnet import CifarResNet
from graphc.verifier import verify


def _silence(graph, coupling, gone):
    """The graph with zeros for all that the channels of some units write and read."""
    silent = graph.clone()
    for name, axes in coupling.weights.items():
        tensor = silent.weights[name].clone()
        for axis, units in axes.items():
            places = torch.tensor([place for place, unit in enumerate(units) if unit in gone], dtype=torch.int64)
            tensor.index_fill_(axis, places, 0.0)
        silent.weights[name] = tensor
    return silent


@pytest.mark.parametrize("seed", [0, 1])
def test_silent_channels_can_go(traced, relative_error, seed):
    """Any choice of units, in every network: narrowing gives what zeros gave."""
    graph = graphc.Pipeline("canonicalize").run(traced.graph) if seed else traced.graph
    coupling = couple(graph)
    generator = torch.Generator().manual_seed(seed)
    gone = {
        unit for group in coupling.groups
        for unit in torch.tensor(group)[torch.randperm(len(group), generator=generator)][: len(group) // 2].tolist()
    }  # fmt: skip
    narrowed = narrow(graph, coupling, gone)
    verify(narrowed)
    inputs = list(traced.inputs)
    assert relative_error(_silence(graph, coupling, gone).run_flat(inputs), narrowed.run_flat(inputs)) <= 1e-5
    shares = torch.tensor(
        [1 - len(gone.intersection(group)) / len(group) for group in coupling.groups], dtype=torch.float64
    )
    counted = sum(macs(narrowed, node) for node in narrowed.calls)
    assert float(RemainingMacs(graph, coupling)(shares)) == pytest.approx(counted)


def test_most_networks_have_channels_to_prune(network):
    names = ("residual", "depthwise", "perceptron", "attention")
    assert [len(couple(network(name).graph).groups) for name in names] == [2, 1, 2, 0]


def test_the_stages_of_a_resnet_with_padded_shortcuts():
    """16 channels run through all stages, 16 more from the second on, 32 more in the third; inner ones are alone."""
    graph = graphc.trace(CifarResNet(2).eval(), (torch.randn(1, 3, 32, 32),))
    coupling = couple(graph)
    assert sorted(len(group) for group in coupling.groups) == [16, 16, 16, 16, 32, 32, 32, 64, 64]
    stem, second, third = (
        coupling.weights[f"{name}.weight"][0] for name in ("conv1", "layer2.0.conv2", "layer3.1.conv2")
    )
    assert second[8:24] == stem
    assert third[16:48] == second
    assert FIXED not in third
    assert coupling.weights["linear.weight"] == {0: (FIXED,) * 10, 1: third}


def test_a_shared_layer_couples_what_it_writes_with_what_it_reads():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.shared, self.last = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            return self.last(F.relu(self.shared(F.relu(self.shared(F.relu(self.first(x)))))))

    coupling = couple(graphc.trace(Twice().eval(), (torch.randn(1, 3),)))
    units = coupling.weights["first.weight"][0]
    assert FIXED not in units and len(set(units)) == 8
    assert coupling.weights["shared.weight"] == {0: units, 1: units}
    assert coupling.weights["last.weight"][1] == units


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_the_bound_is_kept_and_channels_are_multiples(importance):
    torch.manual_seed(1)
    graph = graphc.trace(CifarResNet(1).eval(), (torch.randn(4, 3, 16, 16),))
    ctx = PassContext(calibration=[[torch.randn(4, 3, 16, 16)] for _ in range(2)])
    result = PruneChannels(share=0.5, importance=importance, multiple=4).run(graph, ctx)
    verify(result)
    before, after = (sum(macs(each, node) for node in each.calls) for each in (graph, result))
    assert 0.4 * before < after <= 0.5 * before
    assert result.output.args[0][0].meta["type"] == TensorType((4, 10), torch.float32)
    widths = {tensor.shape[0] for name, tensor in result.weights.items() if "conv" in name}
    assert all(width % 4 == 0 for width in widths)
    again = PruneChannels(share=0.5, importance=importance, multiple=4).run(graph, ctx)
    assert graphc.dump(again) == graphc.dump(result)


def test_taylor_importance_is_the_sum_over_weights_of_each_sample():
    """Against gradients of one sample at a time, weight by weight."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5, 3))
    x = torch.randn(6, 2, 5, 5)
    graph = graphc.trace(model.eval(), (x,))
    coupling = couple(graph)
    found = taylor(graph, coupling, PassContext(calibration=[[x]]))
    expected = torch.zeros_like(found)
    for sample in x.split(1):
        model.zero_grad()
        logits = model(sample)
        F.cross_entropy(logits, logits.argmax(-1)).backward()
        for name, axes in coupling.weights.items():
            weight = model.get_parameter(name)
            for axis, units in axes.items() if weight.dim() > 1 else ():
                sums = (weight * weight.grad).movedim(axis, 0).flatten(1).sum(1).detach().double()
                for unit in set(units) - {FIXED}:
                    expected[unit] += sums[torch.tensor(units) == unit].sum().abs() / len(x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_what_cannot_be_is_said(network):
    graph = network("perceptron").graph
    with pytest.raises(PassError, match="the least that pruning can give is"):
        PruneChannels(macs=10).run(graph, PassContext())
    with pytest.raises(PassError, match="legal: 0 < share <= 1"):
        PruneChannels(share=0.0).run(graph, PassContext())
    with pytest.raises(CalibrationError, match="importance=taylor"):
        PruneChannels(share=0.5, importance="taylor").run(graph, PassContext())
