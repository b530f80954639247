"""The program that lowering gives: its plan, its bytes, and its errors."""

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

from graphc.backends.tvm import lower, supported
from graphc.errors import UnsupportedOperatorError
from graphc.frontends import trace
from graphc.graph import Graph
from graphc.pipeline import PassContext, pipeline
from graphc.structure import Structure
from graphc.target import Target
from graphc.tensor_type import TensorType

aten = torch.ops.aten
HOST = Target.parse("host")


def graph_of(*kinds: TensorType) -> tuple[Graph, list[fx.Node]]:
    graph = Graph("graph", Structure.of(((0,) * len(kinds), {})), Structure.of(0))
    return graph, [graph.add_input(f"x{i}", kind) for i, kind in enumerate(kinds)]


def plan(model: nn.Module, *inputs: torch.Tensor) -> dict[str, Any]:
    graph = pipeline("float").run(trace(model.eval(), inputs), PassContext(), ())
    return lower(graph, HOST).plan


class Repeated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(x))
        return x.mean((2, 3))


def test_layers_alike_share_a_kernel():
    steps = plan(Repeated(), torch.randn(1, 8, 9, 9))["steps"]
    inner = [step for step in steps if step["template"] == "convolution"][1:-1]  # the last one's reader pads nothing
    assert len(inner) == 3
    assert len({step["kernel"] for step in inner}) == 1


def test_steps_name_the_nodes_and_the_layer():
    first = plan(Repeated(), torch.randn(1, 8, 9, 9))["steps"][0]
    assert first["path"] == "layers.0"
    assert len(first["nodes"]) == 2
    assert first["nodes"][0].startswith("conv")


def test_views_cost_no_step():
    class Views(nn.Module):
        def forward(self, x):
            y = x.view(2, 3, 4, 5).permute(0, 2, 1, 3)[:, 1:, :, ::2].unsqueeze(0).expand(3, -1, -1, -1, -1)
            left, right = y.split([1, 2], 2)
            return left.squeeze(2) + right.select(2, 0)

    steps = plan(Views(), torch.randn(6, 20))["steps"]
    assert [step["template"] for step in steps] == ["elementwise"]


def test_convolutions_hand_over_channels_last_memory():
    steps = plan(nn.Sequential(nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)), torch.randn(1, 16, 8, 8))["steps"]
    # The first copies the row-major input of the graph; the second reads what the first wrote as it lies.
    assert ["workspace" in str(step["operands"]) for step in steps] == [True, False]


def test_the_same_graph_gives_the_same_bytes():
    graph = pipeline("float").run(trace(Repeated().eval(), (torch.randn(1, 8, 9, 9),)), PassContext(), ())
    assert lower(graph, HOST) == lower(graph.clone(), HOST)


def test_lowering_leaves_its_graph_alone():
    graph, (x,) = graph_of(TensorType((3,), torch.float32))
    graph.set_output([x, x])
    lower(graph, HOST)
    assert [node.op for node in graph] == ["placeholder", "output"]


def test_equal_weights_are_stored_once():
    graph, (x,) = graph_of(TensorType((40, 40), torch.float32))
    a, b = (graph.add_weight(name, torch.ones(40, 40)) for name in "ab")
    graph.set_output([graph.call(aten.add.Tensor, graph.call(aten.mul.Tensor, x, a), b)])
    assert len(lower(graph, HOST).weights) == 40 * 40 * 4


def test_unsupported_operators_are_reported_all_at_once():
    graph, (x, y) = graph_of(TensorType((3, 3), torch.float32), TensorType((3, 3), torch.float16))
    values = graph.call(aten.linalg_eigvals.default, x)
    ordered = graph.call(operator.getitem, graph.call(aten.sort.default, x), 0)
    ordered.meta["path"] = "head.order"
    graph.set_output([values, ordered, graph.call(aten.relu.default, y)])
    with pytest.raises(UnsupportedOperatorError) as caught:
        lower(graph, HOST)
    message = str(caught.value)
    assert len(caught.value.found) == 4
    for part in (
        "linalg_eigvals",
        "aten.sort.default",
        "in layer 'head.order'",
        "aten.relu.default",
        "convert it to f32",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("target", "kinds", "arguments", "reason"),
    [
        (aten.sin.default, [(torch.float32, (3,))], [], None),
        (aten.sin.default, [(torch.float64, (3,))], [], "float64"),
        (aten.mm.default, [(torch.int64, (3, 3))] * 2, [], "product of int64 and int64"),
        (aten.linalg_vector_norm.default, [(torch.float32, (3,))], [3], "norms of order 1, 2 and infinity"),
        (aten.index.Tensor, [(torch.float32, (3, 4))], "mask", "boolean"),
    ],
)
def test_supported_says_why_not(target, kinds, arguments, reason):
    graph, nodes = graph_of(*[TensorType(shape, dtype) for dtype, shape in kinds])
    if arguments == "mask":
        node = graph.fx.create_node("call_function", target, (nodes[0], [graph.add_weight("m", torch.ones(3) > 0)]))
        node.meta.update(type=TensorType((3, 4), torch.float32), path="", group=None)
    else:
        node = graph.call(target, *nodes, *arguments)
    found = supported(node, HOST)
    assert found is None if reason is None else reason in found
