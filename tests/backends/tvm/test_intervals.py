"""Intervals of integer values: tight enough to be of use, never too narrow."""

import pytest
import torch

from graphc.backends.tvm.intervals import along, interval
from graphc.graph import Graph
from graphc.structure import Structure
from graphc.tensor_type import TensorType

ops = torch.ops.graphc
I32 = (-(2**31), 2**31 - 1)


def graph_of(dtype=torch.int8, shape=(1, 2, 4, 4)):
    x = torch.zeros(shape, dtype=dtype)
    graph = Graph("g", Structure.of(((x,), {})), Structure.of(0))
    return graph, graph.add_input("x", TensorType.of(x))


def lookup(graph):
    return lambda node: graph.weights[node.target].numpy() if node.op == "get_attr" else None


def layer(graph, x, weight, bias, zero, padding=0):
    stored = [graph.add_weight("w", tensor) for tensor in (weight, bias)]
    geometry = ([1, 1], [padding, padding], [1, 1], 1)
    return graph.call(ops.integer_convolution.default, x, *stored, zero, *geometry)


def test_a_layer_has_an_interval_a_channel():
    graph, x = graph_of()
    weight = torch.tensor([[3, -1], [0, 2]], dtype=torch.int8)[:, :, None, None]
    node = layer(graph, x, weight, torch.tensor([10, -7], dtype=torch.int32), 28)
    low, high = along(node, 1, lookup(graph))
    assert (low.tolist(), high.tolist()) == ([3 * -156 - 99 + 10, 2 * -156 - 7], [3 * 99 + 156 + 10, 2 * 99 - 7])
    assert interval(node, lookup(graph)) == (low.min(), high.max())
    assert along(node, 2, lookup(graph))[0].tolist() == [low.min()]


def test_padding_is_nought_even_where_no_value_of_x_means_it():
    graph, x = graph_of(torch.uint8)
    node = layer(graph, x, torch.full((1, 2, 1, 1), 1, dtype=torch.int8), torch.zeros(1, dtype=torch.int32), -9, 1)
    assert interval(node, lookup(graph)) == (0, 2 * (255 + 9))


@pytest.mark.parametrize("bias", [2**31 - 1, -(2**31)])
def test_a_sum_that_may_wrap_can_be_anything(bias):
    graph, x = graph_of()
    weight = torch.full((1, 2, 1, 1), -1, dtype=torch.int8)
    node = layer(graph, x, weight, torch.tensor([bias], dtype=torch.int32), 0)
    assert interval(node, lookup(graph)) == I32


def test_sums():
    graph, x = graph_of(torch.uint8)
    find = lookup(graph)
    pool = graph.call(ops.integer_sum_pool2d.default, x, 5, [2, 3], [1, 1], [0, 0])
    assert interval(pool, find) == (-30, 1500)
    total = graph.call(torch.ops.aten.sum.dim_IntList, x, [2, 3], True, dtype=torch.int32)
    assert interval(total, find) == (0, 16 * 255)
    assert interval(graph.call(torch.ops.aten.add.Tensor, total, total), find) == (0, 32 * 255)
    assert interval(graph.call(torch.ops.aten.mul.Tensor, total, total), find) == I32


@pytest.mark.parametrize(("low", "high", "expected"), [(*I32, (-2, 508)), (0, 9999, (0, 508)), (-9, 300, (-2, 300))])
def test_rescale_gives_what_its_factor_and_its_bounds_leave(low, high, expected):
    graph, x = graph_of()
    twice = [graph.add_weight("f", torch.tensor(value, dtype=torch.int32)) for value in (2**30, 29)]
    node = graph.call(ops.rescale.default, x, *twice, -127, 0, None, low, high)
    assert interval(node, lookup(graph)) == expected
