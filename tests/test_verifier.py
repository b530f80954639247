"""Each invariant of a Graph, broken once."""

from __future__ import annotations

import operator
import re

import pytest
import torch

from graphc.errors import VerificationError
from graphc.graph import Graph
from graphc.structure import Structure
from graphc.tensor_type import SymbolRange, TensorType, symbol
from graphc.verifier import verify

aten = torch.ops.aten
F32 = TensorType((2, 3), torch.float32)


@pytest.fixture
def graph() -> Graph:
    """y = relu(x + w) and its negative, two inputs, one of them unused."""
    graph = Graph("g", Structure.of(((0, 0), {})), Structure.of((0, [0])), symbols={"n": SymbolRange(1, 4)})
    x, _ = graph.add_input("x", F32), graph.add_input("spare", TensorType((symbol("n"),), torch.int64))
    total = graph.call(aten.add.Tensor, x, graph.add_weight("w", torch.ones(3)), name="total")
    result = graph.call(aten.relu.default, total, name="result")
    graph.set_output([result, graph.call(aten.neg.default, result, name="negative")])
    for node in graph.calls:
        node.meta["path"] = "body.0"
    verify(graph)
    return graph


def node(graph: Graph, name: str) -> torch.fx.Node:
    return {node.name: node for node in graph}[name]


def wrong(graph: Graph, message: str) -> None:
    with pytest.raises(VerificationError, match="^" + re.escape(message)):
        verify(graph)


def test_used_before_defined(graph):
    node(graph, "result").prepend(node(graph, "negative"))
    wrong(graph, "%negative (layer 'body.0') uses %result before it is defined")


def test_used_from_another_graph(graph):
    node(graph, "total").args = (Graph.clone(graph).placeholders[0], node(graph, "w"))
    wrong(graph, "%total (layer 'body.0') uses %x before it is defined")


def test_name_given_twice(graph):
    node(graph, "negative").name = "total"
    wrong(graph, "%total (layer 'body.0') has the name of an earlier node")


@pytest.mark.parametrize("kind", [TensorType((3, 2), torch.float32), TensorType((2, 3), torch.float64), (F32, F32)])
def test_other_type(graph, kind):
    node(graph, "result").meta["type"] = kind
    wrong(graph, "%result (layer 'body.0') is recorded as")


def test_no_type(graph):
    del node(graph, "result").meta["type"]
    wrong(graph, "%result (layer 'body.0') has no type")


def test_weight_of_other_type(graph):
    graph.weights["w"] = torch.ones(1, 3)
    wrong(graph, "%w is recorded as f32[3], but its operator gives f32[1, 3]")


def test_weight_that_is_not_there(graph):
    graph.weights.clear()
    wrong(graph, "%w reads the weight 'w', which the graph does not have")


def test_undeclared_size(graph):
    graph.symbols.clear()
    wrong(graph, "%spare has the undeclared size 'n'")


def test_arguments_that_do_not_fit(graph):
    node(graph, "total").args = (node(graph, "x"), node(graph, "spare"))
    wrong(graph, "%total = aten.add.Tensor (layer 'body.0') cannot take %x: f32[2, 3], %spare: i64[n]")


def test_dynamic_size_that_one_value_fits_only(graph):
    """A sum of f32[2, 3] and f32[n] has a type where n = 3, which nobody promised."""
    with (
        graph.fx.inserting_before(graph.output),
        pytest.raises(VerificationError, match="Attempting to broadcast"),
    ):
        graph.call(aten.add.Tensor, node(graph, "x"), node(graph, "spare"))


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (-2, 9), (1, 3)])
def test_dynamic_size_that_large_values_fit_only(graph, start, stop):
    """Two rows cut from n: fewer where n is 1. A cut at the maximum or beyond is all there is."""
    with (
        graph.fx.inserting_before(graph.output),
        pytest.raises(VerificationError, match="but where n = 1 its shape is"),
    ):
        graph.call(aten.slice.Tensor, node(graph, "spare"), 0, start, stop)
    with graph.fx.inserting_before(graph.output):
        assert graph.call(aten.slice.Tensor, node(graph, "spare"), 0, 0, 4).meta["type"].shape == (symbol("n"),)


def test_size_that_no_input_tells(graph):
    graph.symbols["m"] = SymbolRange(1, 4)
    wrong(graph, "size 'm' is no dimension of an input by itself, so that no call tells it")


def test_wrong_number_of_arguments(graph):
    node(graph, "result").args = ()
    wrong(graph, "%result = aten.relu.default (layer 'body.0') cannot take")


def test_in_place_operator(graph):
    node(graph, "result").target = aten.relu_.default
    wrong(graph, "%result (layer 'body.0') calls aten.relu_.default, which writes to its argument")


def test_operator_with_an_out_argument(graph):
    node(graph, "result").target = aten.neg.out
    node(graph, "result").kwargs = {"out": node(graph, "total")}
    wrong(graph, "%result (layer 'body.0') calls aten.neg.out, which writes to its argument")


@pytest.mark.parametrize("target", [torch.relu, operator.add, "relu", aten.relu], ids=str)
def test_python_function(graph, target):
    node(graph, "result").target = target
    with pytest.raises(VerificationError, match=r"%result \(layer 'body.0'\) calls .*, which is no operator"):
        verify(graph)


def test_method_call(graph):
    node(graph, "result").op = "call_method"
    wrong(graph, "%result (layer 'body.0') is a 'call_method', which the IR does not have")


def test_picking_what_is_not_there(graph):
    node(graph, "result").target, node(graph, "result").args = operator.getitem, (node(graph, "total"), 0)
    wrong(graph, "%result picks result 0 of total, which has no such result")


@pytest.mark.parametrize("index", [2, -1, True, 0.0, None])
def test_picking_another_result(index):
    graph = Graph("g", Structure.of(((0,), {})), Structure.of(0))
    pair = graph.call(aten.max.dim, graph.add_input("x", F32), 1, name="pair")
    item = graph.fx.create_node("call_function", operator.getitem, (pair, index), name="item")
    item.meta.update(type=TensorType((2,), torch.float32), path="", group=None)
    graph.set_output([item])
    wrong(graph, f"%item picks result {index} of pair")


def test_other_number_of_results(graph):
    graph.output.args = ((node(graph, "result"),),)
    wrong(graph, "%output must return the 2 tensors of the graph's structure")


def test_results_that_are_no_nodes(graph):
    graph.output.args = ((node(graph, "result"), 3),)
    wrong(graph, "%output must return the 2 tensors of the graph's structure")


def test_results_that_are_tuples(graph):
    with graph.fx.inserting_before(graph.output):
        pair = graph.call(aten.max.dim, node(graph, "x"), 1, name="pair")
    graph.output.args = ((node(graph, "result"), pair),)
    wrong(graph, "%output must return the 2 tensors of the graph's structure")


def test_no_output(graph):
    graph.fx.erase_node(graph.output)
    wrong(graph, "graph 'g' does not end with its output")


def test_two_outputs(graph):
    graph.set_output([node(graph, "result"), node(graph, "total")])
    wrong(graph, "%output is not the last node")


def test_other_number_of_inputs(graph):
    with graph.fx.inserting_before(node(graph, "total")):
        graph.add_input("more", F32)
    wrong(graph, "graph 'g' has other inputs than its structure says")


@pytest.mark.parametrize("limits", [(0, 4), (5, 4), (-1, 3)])
def test_range_of_a_size(graph, limits):
    graph.symbols["n"] = SymbolRange(*limits)
    wrong(graph, f"size 'n' cannot lie in [{limits[0]}, {limits[1]}]")


def test_group_that_waits_for_itself(graph):
    """result is outside, between total and negative, which are in one group."""
    node(graph, "total").meta["group"] = node(graph, "negative").meta["group"] = 1
    wrong(graph, "%negative (layer 'body.0') is in group 1, but depends on that group through a node outside it")


def test_group_that_waits_for_itself_through_another(graph):
    for name, group in (("total", 1), ("result", 2), ("negative", 1)):
        node(graph, name).meta["group"] = group
    wrong(graph, "%negative (layer 'body.0') is in group 1")


def test_group_with_two_results(graph):
    for name in ("total", "result"):
        node(graph, name).meta["group"] = 1
    with graph.fx.inserting_before(graph.output):
        graph.call(aten.neg.default, node(graph, "total"))
    wrong(graph, "%result (layer 'body.0') is used outside of group 1, as is %total: a group has one result")


def test_groups_side_by_side(graph):
    for name, group in (("total", 1), ("result", 1), ("negative", 2)):
        node(graph, name).meta["group"] = group
    verify(graph)


def test_argument_given_by_keyword(graph):
    """One spelling: passes read arguments by place."""
    node(graph, "total").args, node(graph, "total").kwargs = (node(graph, "x"),), {"other": node(graph, "w")}
    wrong(graph, "%total (layer 'body.0') gives 'other' by keyword, which aten.add.Tensor takes by place")


def test_keyword_only_argument(graph):
    node(graph, "total").kwargs = {"alpha": 2}
    verify(graph)


def test_shapes_may_depend_on_numbers():
    """Shape rules are cached: not over arguments that a shape depends on."""
    graph = Graph("g", Structure.of(((0,), {})), Structure.of([0] * 6))
    x = graph.add_input("x", TensorType((1, 1, 4, 4), torch.float32))
    results = [graph.call(aten.upsample_nearest2d.vec, x, None, [scale, scale]) for scale in (2.0, 3.0)]
    results += [graph.call(aten.arange.start_step, 0, stop, 1) for stop in (3.0, 2.0, 3, 2)]
    graph.set_output(results)
    verify(graph)
    assert [str(result.meta["type"]) for result in results] == [
        "f32[1, 1, 8, 8]", "f32[1, 1, 12, 12]", "f32[3]", "f32[2]", "i64[3]", "i64[2]",
    ]  # fmt: skip
