"""A graph that trains: the same results before, gradients, statistics as torch keeps them, and a graph afterwards."""

import copy

import pytest
import torch
from torch import nn

import graphc
from graphc.pipeline import Pipeline
from graphc.text import dump
from graphc.trainable import Trainable
from graphc.verifier import verify


def _network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 2)
    )


def test_computes_what_the_graph_computes(traced, relative_error):
    with torch.no_grad():
        found = Trainable(traced.graph).run_flat(list(traced.inputs))
    assert relative_error(traced.graph.run_flat(list(traced.inputs)), found) == 0


@pytest.mark.parametrize("passes", ["", "canonicalize"])
def test_training_follows_torch_step_by_step(passes):
    model = _network().eval()
    x = torch.randn(6, 3, 5, 5)
    graph = Pipeline(passes).run(graphc.trace(model, (x,)))
    before = dump(graph)
    module = Trainable(graph).train()
    reference = copy.deepcopy(model).train()
    for trained in (module, reference):
        optimizer = torch.optim.SGD(trained.parameters(), 0.1)
        for step in range(3):
            optimizer.zero_grad()
            trained(x + step).square().mean().backward()
            optimizer.step()
    result = module.graph()
    verify(result)
    assert dump(graph) == before, "training changed the graph that it began with"
    torch.testing.assert_close(result.run(x), reference.eval()(x))
    torch.testing.assert_close(result.weights["1.running_var"], reference[1].running_var)


def test_products_under_autocast_are_in_its_dtype():
    seen = {}
    module = Trainable(graphc.trace(_network().eval(), (torch.randn(6, 3, 5, 5),)))
    with torch.autocast("cpu", torch.bfloat16):
        module.run_flat([torch.randn(6, 3, 5, 5)], lambda node, value: seen.__setitem__(str(node.name), value))
    products = [value.dtype for name, value in seen.items() if "conv" in name or "linear" in name or "addmm" in name]
    assert products == [torch.bfloat16, torch.bfloat16]


def test_statistics_masks_and_frozen_weights_are_no_parameters():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = _network()
            self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
            self.register_buffer("training_", torch.tensor([1, 2]))

        def forward(self, x):
            return self.body(x) + self.mask + self.training_

    module = Trainable(graphc.trace(Masked().eval(), (torch.randn(1, 3, 5, 5),)), frozen=("body.4.*",))
    assert {name for name, _ in module.named_parameters()} == {
        "body_0_weight", "body_0_bias", "body_1_weight", "body_1_bias"
    }  # fmt: skip
    assert {"body_1_running_mean", "body_4_weight", "mask"} <= {name for name, _ in module.named_buffers()}


def test_a_checkpoint_goes_on_where_it_was():
    graph = graphc.trace(_network().eval(), (torch.randn(2, 3, 5, 5),))
    first, second = Trainable(graph), Trainable(graph)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(first(x), second(x))
    assert torch.equal(second.graph().run(x), second(x).detach())


def test_small_gradients_reach_what_is_stored_in_16_bits():
    x = torch.randn(2, 8)
    traced = graphc.trace(nn.Linear(8, 4).eval(), (x,))
    module = Trainable(Pipeline("compress{format=sparse}").run(traced))
    (values,) = (value for name, value in module.named_parameters() if "values" in name)
    (module(x).sum() * 1e-12).backward()
    assert values.dtype == torch.float32 and values.grad.abs().min() > 0
    with torch.no_grad():
        values += 1e-5  # less than f16 holds: rounded where it is read, as it will be stored
    assert torch.equal(module(x), module.graph().run(x))
