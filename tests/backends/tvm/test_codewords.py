"""Products with vector-quantized weights that are decoded a panel at a time, on every instruction set."""

from __future__ import annotations

import pytest
import torch

from graphc import formats
from graphc.backends.tvm import lower
from graphc.graph import Graph
from graphc.passes.fuse_operators import FuseOperators
from graphc.pipeline import PassContext
from graphc.structure import Structure
from graphc.target import Target
from graphc.tensor_type import SymbolRange, TensorType, symbol

aten = torch.ops.aten
TARGETS = ("host", "x86-64:v2", "x86-64:v3", "x86-64:vnni", "arm64:cortex-a72", "arm64")
# format, rows of x, rows and columns of the weight
CASES = (
    ("vector", (1,), 64, 64),
    ("vector", (2, 9), 70, 600),
    ("vector(d=8,codewords=128)", (29,), 33, 64),
    ("vector(d=3,codewords=64,scale=false)", (3,), 32, 30),
    ("vector(d=2,codewords=4)", (1,), 5, 6),
    ("vector(codewords=16,codebooks=6)", (3,), 70, 96),
    ("vector(d=2,codebooks=3)", (9,), 64, 960),
    ("vector(d=5,codewords=16)", (2,), 24, 32),  # the last piece of a row is cut: decoded at load
)


def graph_of(cases) -> tuple[Graph, list[torch.Tensor]]:
    """A layer for each case, with a bias and an activation behind."""
    inputs = [torch.randn(*outer, columns) for _, outer, _, columns in cases]
    graph = Graph("codewords", Structure.of((tuple(inputs), {})), Structure.of([0] * len(cases)))
    given = [graph.add_input(f"x{i}", TensorType.of(x)) for i, x in enumerate(inputs)]
    results = []
    for i, (x, (text, _, rows, columns)) in enumerate(zip(given, cases, strict=True)):
        chosen = formats.parse(text)
        weight = chosen.express(graph, chosen.encode(torch.randn(rows, columns)), (rows, columns), f"w{i}")
        y = graph.call(aten.linear.default, x, weight, graph.add_weight("b", torch.ones(rows)))
        results.append(graph.call(aten.relu.default, y))
    graph.set_output(results)
    return FuseOperators().run(graph, PassContext()), inputs


@pytest.mark.parametrize("target", TARGETS)
def test_layers(target, check):
    graph, inputs = graph_of(CASES)
    check(graph, inputs, target=target, atol=1e-4)


def test_one_kernel_a_layer_but_for_cut_pieces():
    graph, _ = graph_of(CASES)
    steps = lower(graph, Target.parse("host")).plan["steps"]
    assert [step["template"] for step in steps].count("codeword product") == len(CASES) - 1
    (left,) = (step for step in steps if step["template"] == "matrix product")
    assert "vq16 d5) is decoded at load" in left["reason"]


def test_rows_are_dynamic(check):
    graph = Graph("dynamic", Structure.of(((torch.zeros(1, 32),), {})), Structure.of(0))
    graph.symbols["batch"] = SymbolRange(1, 40)
    x = graph.add_input("x", TensorType((symbol("batch"), 32), torch.float32))
    chosen = formats.parse("vector")
    weight = chosen.express(graph, chosen.encode(torch.randn(70, 32)), (70, 32), "w")
    graph.set_output([graph.call(aten.linear.default, x, weight, None)])
    check(graph, [torch.randn(1, 32)], [torch.randn(37, 32)], atol=1e-4)
