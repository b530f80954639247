"""Layers whose weights are grouped integers: computed from the stored form, as torch computes the expression."""

from __future__ import annotations

import operator

import pytest
import torch

from graphc import formats
from graphc.backends.tvm import lower
from graphc.graph import Graph
from graphc.structure import Structure
from graphc.target import Target
from graphc.tensor_type import SymbolRange, TensorType, symbol

ops = torch.ops.graphc
aten = torch.ops.aten
TARGETS = ("host", "x86-64:v2", "x86-64:v3", "x86-64:v4", "x86-64:vnni", "arm64:cortex-a72", "arm64:cortex-a76")

# format, group of the activations or None, rows, N, K
CASES = [
    *((f"linear(bits={bits},group=32)", group, 1, 70, 96) for bits in (2, 3, 4, 8) for group in (None, 32)),
    *(
        (f"linear(bits={bits},group=32,symmetric=false)", group, 3, 33, 64)
        for bits in (2, 3, 4, 8)
        for group in (None, 32)
    ),
    *((f"linear(bits={bits},scale=f32)", group, 2, 17, 45) for bits in (2, 3, 4, 8) for group in (None, 45)),
    *((f"linear(bits={bits},group=tensor)", group, 5, 40, 160) for bits in (4, 8) for group in (None, 32)),
    *(("linear(bits=4,group=32)", group, 40, 48, 64) for group in (None, 32, 64)),
    *(("linear(bits=4,group=64)", group, 4, 5, 128) for group in (32, 128)),
    ("linear(bits=4,group=8)", 16, 7, 20, 48),
    ("linear(bits=2,group=16,symmetric=false)", 48, 1, 20, 48),
]


def layer(graph: Graph, text: str, group: int | None, x, rows: int, columns: int, biased: bool = True):
    """linear(x, decoded weight, bias), with x quantized in groups where there is one."""
    generator = torch.Generator().manual_seed(rows * columns)
    chosen, weight = formats.parse(text), torch.randn(rows, columns, generator=generator)
    decoded = chosen.express(graph, chosen.encode(weight), (rows, columns), "w")
    if group is not None:
        both = graph.call(ops.quantize_dynamic.default, x, group)
        x = graph.call(
            ops.dequantize_groups.default, *(graph.call(operator.getitem, both, i) for i in (0, 1)), None, group
        )
    bias = graph.add_weight("b", torch.randn(rows, generator=generator)) if biased else None
    return graph.call(aten.linear.default, x, decoded, bias)


def graph_of(shapes) -> tuple[Graph, list]:
    inputs = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 3 for shape in shapes]
    graph = Graph("layers", Structure.of((tuple(inputs), {})), Structure.of(tuple(inputs)))
    return graph, [graph.add_input(f"x{i}", TensorType.of(x)) for i, x in enumerate(inputs)]


@pytest.mark.parametrize("target", TARGETS)
def test_agrees_with_the_expression(target, check):
    graph, inputs = graph_of([(rows, columns) for _, _, rows, _, columns in CASES])
    results = []
    for (text, group, rows, n, columns), x in zip(CASES, inputs, strict=True):
        results.append(layer(graph, text, group, x, n, columns, rows % 2 == 1))
    graph.set_output(results)
    leaves = [torch.randn(rows, columns) * 3 for _, _, rows, _, columns in CASES]
    leaves[0][0, :32] = 0
    check(graph, leaves, target=target, rtol=1e-5, atol=2e-4)
    steps = lower(graph, Target.parse(target)).plan["steps"]
    assert {step["template"] for step in steps} <= {"compressed product", "packing"}
    assert sum(step["template"] == "compressed product" for step in steps) == len(CASES)


@pytest.mark.parametrize("target", ["host", "arm64:cortex-a76"])
def test_any_number_of_rows(target, check):
    """Whole tiles, then single rows; also where the input is no row after row in memory, and what follows is fused."""
    graph = Graph("g", Structure.of(((0,), {})), Structure.of((0, 0)), symbols={"n": SymbolRange(1, 40)})
    x = graph.add_input("x", TensorType((symbol("n"), 64, 2), torch.float32))
    turned = graph.call(aten.permute.default, x, [2, 0, 1])
    results = [layer(graph, "linear(bits=4,group=32)", group, turned, 40, 64) for group in (None, 32)]
    results = [graph.call(aten.relu.default, value) for value in results]
    for number, (value, source) in enumerate(zip(results, [node.args[0] for node in results], strict=True)):
        value.meta["group"] = source.meta["group"] = number
    graph.set_output(results)
    check(graph, *([torch.randn(n, 64, 2)] for n in (1, 2, 5, 13, 40)), target=target, rtol=1e-5, atol=2e-4)


def test_stored_bytes_are_the_formats():
    """A weight that fills its panels takes exactly the bytes of its codes and scales."""
    for text, size in (("bits=4,group=32", 4.5), ("bits=3,group=32", 3.5), ("bits=2", 2 + 16 / 256)):
        graph, (x,) = graph_of([(1, 256)])
        graph.set_output([layer(graph, f"linear({text})", None, x, 128, 256, False)])
        weights = lower(graph, Target.parse("x86-64:vnni")).weights
        assert 0 <= len(weights) - 128 * 256 * size / 8 <= 64  # a table of 16 floats


def test_a_tied_weight_is_decoded_for_whom_it_must_be():
    """An embedding reads the dense table, the layer its codes."""
    graph, (x,) = graph_of([(2, 64)])
    y = layer(graph, "linear(bits=4,group=32)", 32, x, 40, 64)
    rows = graph.call(aten.mul.Tensor, y.args[1], 2.0)
    graph.set_output([y, rows])
    plan = lower(graph, Target.parse("host")).plan
    assert [step["template"] for step in plan["steps"]].count("compressed product") == 1
    assert plan["init_steps"] > 0


def test_what_no_kernel_reads_is_decoded_at_load_and_said(check):
    graph, (x,) = graph_of([(2, 36)])
    graph.set_output([layer(graph, "linear(bits=4,group=12)", None, x, 20, 36)])
    check(graph, [torch.randn(2, 36)])
    *at_load, last = lower(graph, Target.parse("host")).plan["steps"]
    assert at_load and last["template"] == "matrix product"
    assert last["reason"] == "its weight (int4 g12) is decoded at load: no kernel of this layer reads it as stored"
