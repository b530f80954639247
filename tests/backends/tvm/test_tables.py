"""Products with vector-quantized weights by look-up in registers, on every instruction set.

Inputs and codewords have few bits, so that tables round alike in whichever order products are summed.
"""

from __future__ import annotations

import pytest
import torch
from torch import fx

from graphc.backends.tvm import lower
from graphc.graph import Graph
from graphc.operators.weights import pack
from graphc.passes.fuse_operators import FuseOperators
from graphc.passes.tabulate import Tabulate
from graphc.pipeline import PassContext
from graphc.structure import Structure
from graphc.target import Target
from graphc.tensor_type import SymbolRange, TensorType, symbol

aten, ops = torch.ops.aten, torch.ops.graphc
ATOL = 1e-3  # results are sums of hundreds; one step of a table is far more
TARGETS = ("host", "x86-64:v2", "x86-64:v3", "x86-64:vnni", "arm64:cortex-a72", "arm64")
# rows of x, rows and columns of the weight, d, codewords, and codebooks where there are several
CASES = (
    ((1,), 64, 32, 4, 256),
    ((1, 1), 1000, 96, 8, 256),
    ((3,), 200, 64, 4, 256),
    ((2, 2), 70, 129, 3, 256),
    ((1,), 130, 64, 4, 128),
    ((2,), 700, 128, 4, 64),
    ((1,), 64, 64, 4, 32),
    ((1,), 333, 520, 2, 16),
    ((1,), 5, 24, 12, 256),
    ((2,), 70, 192, 4, 16, 6),
    ((1,), 64, 64, 8, 256, 2),
)


def exact(*shape: int) -> torch.Tensor:
    """Multiples of 1/64, of at most 10 bits: products of a few sum exactly."""
    return torch.randint(-1000, 1001, shape) / 64


def graph_of(pieces: int) -> tuple[Graph, list[torch.Tensor]]:
    """A layer for each case, with scale, bias and an activation behind."""
    inputs = [exact(*case[0], case[2]) for case in CASES]
    graph = Graph("tables", Structure.of((tuple(inputs), {})), Structure.of([0] * len(CASES)))
    given = [graph.add_input(f"x{i}", TensorType.of(x)) for i, x in enumerate(inputs)]
    results = []
    for x, (_, *case) in zip(given, CASES, strict=True):
        rows, weight = case[0], lookup(graph, *case)
        weight = graph.call(aten.mul.Tensor, weight, graph.add_weight("scale", torch.rand(rows, 1)))
        y = graph.call(aten.linear.default, x, weight, graph.add_weight("bias", exact(rows)))
        results.append(graph.call(aten.relu.default, y))
    graph.set_output(results)
    return tabulated(graph, pieces), inputs


def lookup(graph: Graph, rows: int, columns: int, d: int, words: int, *spaces: int) -> fx.Node:
    bits = words.bit_length() - 1
    indices = torch.randint(0, words, (rows, columns // d), dtype=torch.uint8)
    codes = graph.add_weight("codes", indices if bits == 8 else pack(indices, bits))
    if bits < 8:
        codes = graph.call(ops.unpack.default, codes, bits, columns // d)
    codebook = exact(*spaces, words, d).to(torch.float16)
    return graph.call(ops.lookup.default, codes, graph.add_weight("codebook", codebook))


def tabulated(graph: Graph, pieces: int) -> Graph:
    graph = Tabulate(pieces=pieces).run(graph, PassContext())
    return FuseOperators().run(graph, PassContext())


def steps(graph: Graph, target: str = "host") -> list[dict]:
    """Of a run, and before them what is packed at load."""
    plan = lower(graph, Target.parse(target)).plan
    first = plan["init_steps"]
    assert {step["template"] for step in plan["steps"][:first]} <= {"packing"}
    return plan["steps"][first:]


def templates(graph: Graph) -> list[str]:
    return [step["template"] for step in steps(graph)]


@pytest.mark.parametrize("pieces", [32, 256])
@pytest.mark.parametrize("target", TARGETS)
def test_layers_by_tables(target, pieces, check):
    graph, inputs = graph_of(pieces)
    check(graph, inputs, target=target, atol=ATOL)


def test_two_kernels_a_layer():
    graph, _ = graph_of(32)
    assert templates(graph) == ["partial products", "table lookup"] * len(CASES)


@pytest.mark.parametrize(
    ("target", "slow"), [("x86-64:v3", "16 of pshufb on this CPU; 16 codewords"), ("arm64", "4 of tbl on this CPU; 64")]
)
def test_tables_beyond_one_permutation_are_reported(target, slow):
    graph, _ = graph_of(32)
    reasons = [step["reason"] for step in steps(graph, target)]
    assert slow in reasons[1]
    assert reasons[2 * CASES.index(((1,), 333, 520, 2, 16)) + 1] == ""


def test_layers_of_one_input_and_codebook_share_tables(check):
    x = exact(1, 64)
    graph = Graph("shared", Structure.of(((x,), {})), Structure.of((0, 1)))
    given = graph.add_input("x", TensorType.of(x))
    codebook = graph.add_weight("codebook", exact(256, 4).to(torch.float16))
    results = []
    for rows in (64, 192):
        codes = graph.add_weight("codes", torch.randint(0, 256, (rows, 16), dtype=torch.uint8))
        weight = graph.call(ops.lookup.default, codes, codebook)
        results.append(graph.call(aten.linear.default, given, weight, None))
    graph.set_output(results)
    graph = tabulated(graph, 32)
    assert templates(graph) == ["partial products", "table lookup", "table lookup"]
    check(graph, [x], atol=ATOL)


def test_rows_are_dynamic(check):
    graph = Graph("dynamic", Structure.of(((torch.zeros(1, 64),), {})), Structure.of(0))
    graph.symbols["batch"] = SymbolRange(1, 6)
    x = graph.add_input("x", TensorType((symbol("batch"), 64), torch.float32))
    graph.set_output([graph.call(aten.linear.default, x, lookup(graph, 100, 64, 4, 256), None)])
    graph = tabulated(graph, 32)
    assert "gather_sum" in str([node.target for node in graph.calls])
    check(graph, [exact(1, 64)], [exact(5, 64)], atol=ATOL)


def test_tables_that_are_returned_are_computed_for_themselves(check):
    """Nothing is fused that somebody else reads."""
    x = exact(2, 64)
    graph = Graph("returned", Structure.of(((x,), {})), Structure.of((0, 1)))
    given = graph.add_input("x", TensorType.of(x))
    y = graph.call(aten.linear.default, given, lookup(graph, 70, 64, 4, 256), None)
    graph.set_output([y])
    graph = tabulated(graph, 32)
    decoded = next(node for node in graph.calls if node.target is ops.dequantize_groups.default)
    products = next(node for node in graph.calls if node.target is ops.partial_products.default)
    graph.output.args = ((*graph.output.args[0], decoded, products),)
    graph.outputs = Structure.of((0, 1, 2))
    check(graph, [x], atol=ATOL)


def test_a_zero_input_gives_the_bias(check):
    x = torch.zeros(1, 64)
    graph = Graph("zero", Structure.of(((x,), {})), Structure.of(0))
    given = graph.add_input("x", TensorType.of(x))
    bias = graph.add_weight("bias", exact(70))
    graph.set_output([graph.call(aten.linear.default, given, lookup(graph, 70, 64, 4, 256), bias)])
    check(tabulated(graph, 32), [x], atol=ATOL)


def test_codewords_element_by_element(check):
    """Without the pass, or where a layer reads part of the last piece, the weight is decoded at load."""
    x = exact(3, 62)
    graph = Graph("decoded", Structure.of(((x,), {})), Structure.of(0))
    given = graph.add_input("x", TensorType.of(x))
    words = graph.call(aten.slice.Tensor, lookup(graph, 70, 64, 4, 16), 1, 0, 62, 1)
    graph.set_output([graph.call(aten.linear.default, given, words, None)])
    for target in TARGETS:
        check(graph, [x], target=target, atol=ATOL)
