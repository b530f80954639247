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


class _Net(nn.Module):
    """Layers, and a function of them and the input."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def _shuffle(x, first, last):
    y = first(x)
    return last(y.reshape(len(y), 2, -1, *y.shape[2:]).transpose(1, 2).reshape(y.shape))


def _gated(x, first, last):
    left, right = first(x).chunk(2, 1)
    return last(left * right.sigmoid())


def _squeezed(x, first, down, up, last):
    y = first(x)
    return last(y * up(F.relu(down(y.mean((2, 3), keepdim=True)))).sigmoid())


_CONV, _IMAGE, _ROWS = nn.Conv2d, (2, 2, 6, 4), (2, 5)
HOSTILE = {
    # name: network, shape of its input, sizes of the groups that may be narrowed
    "transposed": (nn.Sequential(_CONV(2, 4, 3), nn.ConvTranspose2d(4, 6, 2, 2), _CONV(6, 3, 1)), _IMAGE, [4, 6]),
    "transposed depthwise: all or none": (
        nn.Sequential(_CONV(2, 4, 1), nn.ConvTranspose2d(4, 4, 2, 2, groups=4), _CONV(4, 3, 1)), _IMAGE, [1, 1],
    ),
    "transposed in groups": (
        nn.Sequential(_CONV(2, 8, 1), nn.ConvTranspose2d(8, 6, 2, 2, groups=2), _CONV(6, 3, 1)), _IMAGE, [3, 4],
    ),
    "in groups": (nn.Sequential(_CONV(2, 8, 1), _CONV(8, 12, 3, groups=2), _CONV(12, 3, 1)), _IMAGE, [4, 6]),
    "depthwise, two of each": (nn.Sequential(_CONV(2, 4, 1), _CONV(4, 8, 3, groups=4), _CONV(8, 3, 1)), _IMAGE, [4]),
    "reflected edges": (
        nn.Sequential(_CONV(2, 4, 1), _CONV(4, 6, 3, padding=1, padding_mode="reflect"), _CONV(6, 3, 1)), _IMAGE, [6],
    ),
    "beside each other": (
        _Net(lambda x, a, b, c: c(torch.cat([a(x), b(x)], 3)), _CONV(2, 4, 1), _CONV(2, 4, (1, 3)), _CONV(4, 3, 1)),
        _IMAGE, [4],
    ),
    "a slice from the end": (_Net(lambda x, a, b: b(a(x)[:, -3:]), _CONV(2, 8, 1), _CONV(3, 3, 1)), _IMAGE, [3, 5]),
    "pixel shuffle": (nn.Sequential(_CONV(2, 16, 1), nn.PixelShuffle(2), _CONV(4, 3, 1)), _IMAGE, [4]),
    "group normalization": (nn.Sequential(_CONV(2, 8, 1), nn.GroupNorm(2, 8), _CONV(8, 3, 1)), _IMAGE, []),
    "layer normalization": (nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)), _ROWS, []),
    "batch normalization of rows": (nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)), _ROWS, [8]),
    "one batch normalization for two": (
        _Net(lambda x, a, b, n, c: c(F.relu(n(a(x))) + n(b(x))), _CONV(2, 4, 1), _CONV(2, 4, 1), nn.BatchNorm2d(4),
             _CONV(4, 3, 1)), _IMAGE, [4],
    ),
    "shuffled channels": (_Net(_shuffle, _CONV(2, 8, 1), _CONV(8, 3, 1)), _IMAGE, []),
    "a weight that is a result": (
        _Net(lambda x, a, b: (b(a(x)), a.weight), _CONV(2, 8, 1), _CONV(8, 3, 1)), _IMAGE, [],
    ),
    "a weight read by another operator": (
        _Net(lambda x, a, b: b(a(x)) + a.weight.sum(), _CONV(2, 8, 1), _CONV(8, 3, 1)), _IMAGE, [],
    ),
    "squeeze and excitation": (
        _Net(_squeezed, _CONV(2, 8, 1), _CONV(8, 2, 1), _CONV(2, 8, 1), _CONV(8, 3, 1)), _IMAGE, [2, 8],
    ),
    "one channel for all": (
        _Net(lambda x, a, b, c: c(a(x) * b(a(x)).sigmoid()), _CONV(2, 8, 1), _CONV(8, 1, 1), _CONV(8, 3, 1))
        , _IMAGE, [1, 8],
    ),
    "a mean over channels": (_Net(lambda x, a, b: b(a(x).mean(1, True)), _CONV(2, 8, 1), _CONV(1, 3, 1)), _IMAGE, []),
    "halves that gate each other": (_Net(_gated, _CONV(2, 8, 1), _CONV(4, 3, 1)), _IMAGE, [4]),
    "flattened": (nn.Sequential(_CONV(2, 4, 3), nn.Flatten(), nn.Linear(32, 3)), _IMAGE, [4]),
    "channels last": (
        _Net(lambda x, a, b: b(F.gelu(a(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2), nn.Linear(2, 8), nn.Linear(8, 3))
        , _IMAGE, [8],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_may_be_narrowed_of_hostile_networks(name, relative_error):
    """The groups are those worked out by hand, and half of each can go without a change beyond silence."""
    model, shape, sizes = HOSTILE[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    graph = graphc.trace(model.eval(), (x,))
    coupling = couple(graph)
    assert sorted(len(group) for group in coupling.groups) == sizes
    gone = {unit for group in coupling.groups for unit in group[::2] if len(group) > 1}
    narrowed = narrow(graph, coupling, gone)
    verify(narrowed)
    assert relative_error(_silence(graph, coupling, gone).run_flat([x]), narrowed.run_flat([x])) <= 1e-5
    assert bool(gone) == (sum(macs(narrowed, node) for node in narrowed.calls) < _cost(graph))


def _cost(graph):
    return sum(macs(graph, node) for node in graph.calls)


def test_what_the_bound_has_room_for_comes_back():
    """One more block of any group would break it."""
    torch.manual_seed(4)
    graph = graphc.trace(CifarResNet(1).eval(), (torch.randn(1, 3, 16, 16),))
    for share in (0.35, 0.5, 0.75):
        result = PruneChannels(share=share, multiple=4).run(graph, PassContext())
        coupling, sizes = couple(graph), [len(group) for group in couple(graph).groups]
        left = [len(group) for group in couple(result).groups]
        remaining = RemainingMacs(graph, coupling)
        assert _cost(result) <= share * _cost(graph)
        for place, (kept, size) in enumerate(zip(left, sizes, strict=True)):
            if kept < size:
                more = torch.tensor([*left[:place], min(size, kept + 4), *left[place + 1 :]]) / torch.tensor(sizes)
                assert float(remaining(more.double())) > share * _cost(graph)


def test_a_group_no_wider_than_the_multiple_goes_by_quarters():
    torch.manual_seed(5)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 48, 1), nn.ReLU(), nn.Conv2d(48, 3, 1))
    graph = graphc.trace(model.eval(), (torch.randn(1, 3, 4, 4),))
    result = PruneChannels(share=0.2, multiple=16).run(graph, PassContext())
    widths = [result.weights[name].shape[0] for name in ("0.weight", "2.weight")]
    assert widths[0] in (4, 8, 12) and widths[1] % 16 == 0
