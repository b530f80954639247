"""Products with 2:4 and block sparse weights, read as they are stored, on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import fx

from graphc import formats
from graphc.backends.tvm import lower
from graphc.graph import Graph
from graphc.passes.fuse_operators import FuseOperators
from graphc.pipeline import PassContext
from graphc.structure import Structure
from graphc.target import Target
from graphc.tensor_type import SymbolRange, TensorType, symbol

aten = torch.ops.aten
TARGETS = ("host", "x86-64:v2", "x86-64:v3", "arm64:cortex-a72", "arm64")
# format, rows of x, rows and columns of the weight
CASES = (
    ("sparse", (1,), 64, 64),
    ("sparse", (1, 5), 70, 44),
    ("sparse(values=f32)", (2,), 33, 36),
    ("sparse(values=int8)", (1,), 129, 132),
    ("sparse(values=int8)", (13,), 16, 8),
    ("block_sparse", (1,), 64, 64),
    ("block_sparse(density=0.3)", (2, 4), 48, 40),
    ("block_sparse(height=32,width=3,values=f32)", (1,), 96, 33),
    ("block_sparse(width=1,density=0.1)", (14,), 32, 50),
    ("block_sparse(height=4,width=2)", (2,), 12, 10),
)
# What no kernel reads as it is stored.
EXPANDED = (
    ("unstructured", (2,), 33, 20),
    ("unstructured(density=0.1)", (1, 3), 16, 44),
    ("unstructured(density=0.05,values=f32)", (2,), 7, 35),
)
BINARY = (("binary", (3,), 40, 36), ("binary", (1,), 64, 128), ("binary(scale=false)", (2,), 16, 9))


def decoded(graph: Graph, text: str, rows: int, columns: int) -> fx.Node:
    chosen = formats.parse(text)
    return chosen.express(graph, chosen.encode(torch.randn(rows, columns)), (rows, columns), f"w{len(graph.weights)}")


def graph_of(cases) -> tuple[Graph, list[torch.Tensor]]:
    """A layer for each case, with a bias and an activation behind."""
    inputs = [torch.randn(*outer, columns) for _, outer, _, columns in cases]
    graph = Graph("sparse", Structure.of((tuple(inputs), {})), Structure.of([0] * len(cases)))
    given = [graph.add_input(f"x{i}", TensorType.of(x)) for i, x in enumerate(inputs)]
    results = []
    for x, (text, _, rows, columns) in zip(given, cases, strict=True):
        y = graph.call(
            aten.linear.default, x, decoded(graph, text, rows, columns), graph.add_weight("b", torch.ones(rows))
        )
        results.append(graph.call(aten.relu.default, y))
    graph.set_output(results)
    return FuseOperators().run(graph, PassContext()), inputs


@pytest.mark.parametrize("target", TARGETS)
def test_layers(target, check):
    graph, inputs = graph_of((*CASES, *EXPANDED, *BINARY))
    check(graph, inputs, target=target, atol=1e-4)


def test_one_kernel_a_layer_but_for_blocks_of_few_rows():
    graph, _ = graph_of(CASES)
    steps = lower(graph, Target.parse("host")).plan["steps"]
    used = [step["template"] for step in steps]
    assert used.count("sparse product") == len(CASES) - 1
    (left,) = (step for step in steps if step["template"] == "matrix product")
    assert "blocks 4x2 f16) is decoded at load" in left["reason"]


def test_single_weights_are_expanded_at_load_and_signs_are_read_as_stored():
    graph, _ = graph_of((*EXPANDED, *BINARY))
    steps = lower(graph, Target.parse("host")).plan["steps"]
    reasons = [step["reason"] for step in steps if step["template"] == "matrix product"]
    assert len(reasons) == len(EXPANDED)
    assert "its weight (sparse 0.1 f16) is decoded at load: no kernel of this layer reads it as stored" in reasons
    assert [step["template"] for step in steps].count("codeword product") == len(BINARY)


def test_rows_are_dynamic_and_the_input_is_permuted(check):
    graph = Graph("dynamic", Structure.of(((torch.zeros(20, 1),), {})), Structure.of((0, 1)))
    graph.symbols["batch"] = SymbolRange(1, 9)
    x = graph.add_input("x", TensorType((20, symbol("batch")), torch.float32))
    turned = graph.call(aten.permute.default, x, [1, 0])
    weights = [decoded(graph, text, 32, 20) for text in ("sparse", "block_sparse")]
    graph.set_output([graph.call(aten.linear.default, turned, weight, None) for weight in weights])
    check(graph, [torch.randn(20, 1)], [torch.randn(20, 8)], atol=1e-4)


def test_a_weight_that_is_returned_too_is_also_decoded(check):
    graph = Graph("returned", Structure.of(((torch.zeros(1, 16),), {})), Structure.of((0, 1)))
    x = graph.add_input("x", TensorType((1, 16), torch.float32))
    weight = decoded(graph, "sparse", 24, 16)
    blocks = decoded(graph, "block_sparse", 32, 16)
    y = graph.call(aten.linear.default, x, weight, None)
    z = graph.call(aten.linear.default, x, blocks, None)
    graph.set_output([y, z, graph.call(aten.neg.default, weight), graph.call(aten.neg.default, blocks)])
    graph.outputs = Structure.of((0, 1, 2, 3))
    check(graph, [torch.randn(1, 16)], atol=1e-4)
