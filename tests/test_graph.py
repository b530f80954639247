"""Graph: building, cloning, and running with inputs that fit or do not."""

from __future__ import annotations

import math
import operator

import numpy as np
import pytest
import torch

import graphc
from graphc.errors import GraphcError, InputError
from graphc.graph import Graph, arguments, identifier
from graphc.structure import Structure
from graphc.tensor_type import SymbolRange, TensorType, symbol
from graphc.text import dump
from graphc.verifier import verify

aten = torch.ops.aten
n, m = symbol("n"), symbol("m")


@pytest.fixture
def graph() -> Graph:
    """(x [n, 3], mask [n] bool, scale=[]) -> {"y": masked, "twice": [2n, 3]}"""
    graph = Graph(
        "g",
        Structure.of(((0, None, 0), {"scale": 0})),
        Structure.of({"y": 0, "twice": 0}),
        symbols={"n": SymbolRange(2, 5)},
    )
    x = graph.add_input("x", TensorType((n, 3), torch.float32))
    mask = graph.add_input("mask", TensorType((n,), torch.bool))
    scale = graph.add_input("scale", TensorType((), torch.float32))
    y = graph.call(aten.mul.Tensor, x, graph.call(aten.view.default, mask, [n, 1]), name="y")
    y = graph.call(aten.mul.Tensor, y, scale)
    graph.set_output([y, graph.call(aten.cat.default, [x, y], 0)])
    verify(graph)
    return graph


# -- running -------------------------------------------------------------------------------------


def test_a_call_has_the_user_s_structure(graph):
    x, mask = torch.randn(4, 3), torch.tensor([True, False, True, True])
    result = graph.run(x, None, mask, scale=torch.tensor(2.0))
    assert torch.equal(result["y"], x * mask[:, None] * 2)
    assert result["twice"].shape == (8, 3)
    assert list(result) == ["y", "twice"]


def test_a_call_takes_numpy_and_numbers(graph):
    result = graph.run(np.ones((2, 3), np.float32), None, np.array([True, False]), scale=np.float32(3))
    assert result["y"].tolist() == [[3, 3, 3], [0, 0, 0]]


X, MASK, SCALE = torch.ones(4, 3), torch.ones(4, dtype=torch.bool), torch.tensor(1.0)


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((X, None, MASK), {}, "scale"),
        ((X, None, MASK, X), {"scale": SCALE}, "3"),
        ((X, 1, MASK), {"scale": SCALE}, "None"),
        ((X, X, MASK), {"scale": SCALE}, "None"),
        ((X, None, MASK), {"scale": SCALE, "more": X}, "more"),
        ((X[0], None, MASK), {"scale": SCALE}, r"input 'x' must be f32\[n, 3\], got f32\[3\]"),
        ((torch.tensor(1.0), None, MASK), {"scale": SCALE}, r"input 'x' must be f32\[n, 3\], got f32\[\]"),
        ((X[None], None, MASK), {"scale": SCALE}, r"input 'x' must be f32\[n, 3\], got f32\[1, 4, 3\]"),
        ((X[:, :2], None, MASK), {"scale": SCALE}, r"input 'x' must be f32\[n, 3\], got f32\[4, 2\]"),
        ((X, None, MASK[:3]), {"scale": SCALE}, r"input 'mask' must be bool\[n\], got bool\[3\]"),
        ((X.double(), None, MASK), {"scale": SCALE}, r"input 'x' must be f32\[n, 3\], got f64\[4, 3\]"),
        ((X, None, MASK.to(torch.uint8)), {"scale": SCALE}, r"input 'mask' must be bool\[n\], got u8\[4\]"),
        (
            (X.to(torch.complex64), None, MASK),
            {"scale": SCALE},
            r"input 'x' must be f32\[n, 3\], got complex64\[4, 3\]",
        ),
        ((X, None, MASK), {"scale": SCALE[None]}, r"input 'scale' must be f32\[\], got f32\[1\]"),
        ((X[:1], None, MASK[:1]), {"scale": SCALE}, "size 'n' must lie between 2 and 5, the inputs make it 1"),
        ((torch.ones(6, 3), None, torch.ones(6) > 0), {"scale": SCALE}, "size 'n' must lie between 2 and 5"),
        (("text", None, MASK), {"scale": SCALE}, "input 'x'"),
        ((object(), None, MASK), {"scale": SCALE}, "input 'x'"),
        ((None, None, MASK), {"scale": SCALE}, "input 'x'"),
        (([[1.0, 2.0], [3.0]], None, MASK), {"scale": SCALE}, "input 'x'"),
    ],
)
def test_inputs_that_do_not_fit(graph, args, kwargs, message):
    with pytest.raises(InputError, match=message):
        graph.run(*args, **kwargs)


def test_number_of_flat_inputs(graph):
    with pytest.raises(InputError, match="g takes 3 input tensors, got 2"):
        graph.run_flat([X, MASK])


def test_sizes_that_only_expressions_name():
    graph = Graph("g", Structure.of(((0, 0), {})), Structure.of(0), symbols={"n": SymbolRange(1, 9)})
    x = graph.add_input("x", TensorType((2 * n,), torch.float32))
    graph.add_input("y", TensorType((n,), torch.float32))
    graph.set_output([x])
    assert graph.bind([torch.ones(6), torch.ones(3)]) == {n: 3}
    with pytest.raises(InputError, match=r"input 'x' must be f32\[2\*n\], got f32\[5\]"):
        graph.bind([torch.ones(5), torch.ones(3)])
    with pytest.raises(InputError, match=r"input 'y' must be f32\[n\], got f32\[3, 1\]"):
        graph.bind([torch.ones(6), torch.ones(3, 1)])


def test_observing(graph):
    seen = {}
    graph.run(X, None, MASK, scale=SCALE, observe=lambda node, value: seen.update({node.name: value.shape}))
    assert list(seen) == [node.name for node in graph.calls]
    assert seen["y"] == (4, 3)


def test_values_are_freed_after_their_last_use():
    import weakref

    graph = Graph("g", Structure.of(((0,), {})), Structure.of(0))
    node = graph.add_input("x", TensorType((4,), torch.float32))
    for _ in range(5):
        node = graph.call(aten.neg.default, node)
    graph.set_output([node])
    alive, most = [], []

    def see(node, value):
        alive.append(weakref.ref(value))
        most.append(sum(item() is not None for item in alive))

    graph.run(torch.ones(4), observe=see)
    assert max(most) <= 2


def test_weights_and_inputs_are_never_written():
    graph = Graph("g", Structure.of(((0,), {})), Structure.of((0, 0)))
    weight = torch.ones(3)
    x = graph.add_input("x", TensorType((3,), torch.float32))
    w = graph.add_weight("w", weight)
    graph.set_output([graph.call(aten.add.Tensor, x, w), w])
    given = torch.zeros(3)
    graph.run(given)
    assert weight.tolist() == [1, 1, 1]
    assert given.tolist() == [0, 0, 0]


def test_a_view_of_what_is_not_contiguous(graph):
    graph = Graph("g", Structure.of(((0,), {})), Structure.of(0))
    x = graph.add_input("x", TensorType((2, 3, 4), torch.float32))
    turned = graph.call(aten.permute.default, x, [2, 0, 1])
    graph.set_output([graph.call(aten.view.default, turned, [4, 6])])
    given = torch.randn(2, 3, 4)
    assert torch.equal(graph.run(given), given.permute(2, 0, 1).reshape(4, 6))


def test_integers_that_lie_channels_last_are_pooled():
    graph = Graph("g", Structure.of(((0,), {})), Structure.of(0))
    x = graph.add_input("x", TensorType((1, 3, 12, 12), torch.int8))
    graph.set_output([graph.call(torch.ops.aten.max_pool2d.default, x, [3, 3], [2, 2], [1, 1])])
    values = torch.randint(-128, 128, (1, 3, 12, 12), dtype=torch.int8)
    assert (graph.run(values.contiguous(memory_format=torch.channels_last)) == graph.run(values)).all()


# -- building ------------------------------------------------------------------------------------


def test_a_clone_has_its_own_nodes_and_the_same_tensors(traced):
    graph = traced.graph
    before = dump(graph)
    clone = graph.clone()
    assert dump(clone) == before
    assert all(clone.weights[name] is tensor for name, tensor in graph.weights.items())
    for node in clone.calls:
        node.meta["group"] = 7
        node.name = f"{node.name}_changed"
    clone.weights.clear()
    clone.symbols["other"] = SymbolRange(1, 2)
    assert dump(graph) == before


def test_names_are_made_unique():
    graph = Graph("g", Structure.of(((0,), {})), Structure.of(0))
    x = graph.add_input("x", TensorType((2,), torch.float32))
    one, two = torch.ones(2), torch.zeros(2)
    nodes = [graph.add_weight("w", tensor) for tensor in (one, two, one, two)]
    assert [node.target for node in nodes] == ["w", "w.1", "w", "w.1"]
    first, second = (graph.call(aten.neg.default, x) for _ in range(2))
    graph.rename(second, first.name)
    assert len({node.name for node in graph}) == len(graph.fx.nodes)
    graph.set_output([first])
    verify(graph)


def test_replacing_takes_over_the_name_and_the_users():
    graph = Graph("g", Structure.of(((0,), {})), Structure.of((0, 0)))
    x = graph.add_input("x", TensorType((2,), torch.float32))
    old = graph.call(aten.relu.default, x, name="old")
    graph.set_output([old, graph.call(aten.neg.default, old, name="user")])
    with graph.at(old, path="layer"):
        new = graph.call(aten.abs.default, x)
    graph.replace(old, new)
    assert new.name == "old"
    assert new.meta["path"] == "layer"
    assert graph.run(torch.tensor([-1.0, 2]))[0].tolist() == [1, 2]
    graph.replace(new, x)
    assert x.name == "x"
    verify(graph)


def test_provenance_of_the_block_around():
    graph = Graph("g", Structure.of(((0,), {})), Structure.of(0))
    x = graph.add_input("x", TensorType((2,), torch.float32))
    old = graph.call(aten.relu.default, x)
    old.meta["path"] = "body.0"
    graph.set_output([old])
    with graph.at(old):
        assert graph.call(aten.neg.default, x).meta["path"] == "body.0"
        with graph.at(old, path="other"):
            assert graph.add_weight("w", torch.ones(2)).meta["path"] == "other"
        assert graph.call(aten.neg.default, x).meta["path"] == "body.0"
    assert [node.name for node in graph][-1] == "output"


def test_dropping_what_is_not_used_keeps_the_inputs():
    graph = Graph("g", Structure.of(((0, 0), {})), Structure.of(0), {"w": torch.ones(2), "v": torch.ones(2)})
    x, _ = (graph.add_input(name, TensorType((2,), torch.float32)) for name in "xy")
    graph.call(aten.mul.Tensor, x, graph.add_weight("w", graph.weights["w"]))
    graph.set_output([x])
    assert graph.drop_unused()
    assert [node.op for node in graph] == ["placeholder", "placeholder", "output"]
    assert graph.weights == {}
    assert not graph.drop_unused()


def test_arguments_with_their_defaults():
    graph = Graph("g", Structure.of(((0,), {})), Structure.of(0))
    x = graph.add_input("x", TensorType((1, 1, 4, 4), torch.float32))
    pool = graph.call(aten.avg_pool2d.default, x, [2, 2])
    assert arguments(pool) == [x, [2, 2], [], 0, False, True, None] or arguments(pool)[4:] == [False, True, None]
    total = graph.call(aten.add.Tensor, x, x, alpha=3)
    assert arguments(total) == [x, x, 3]


@pytest.mark.parametrize(("name", "result"), [("a.b", "a_b"), ("0.weight", "_0_weight"), ("", "_"), ("_x-1", "_x_1")])
def test_identifiers(name, result):
    assert identifier(name) == result
    assert identifier(name).isidentifier()


def test_types():
    kind = TensorType((n, 3), torch.bfloat16)
    assert str(kind) == "bf16[n, 3]"
    assert kind == TensorType((n, 3), torch.bfloat16)
    assert TensorType.of(torch.zeros(2, 0, dtype=torch.int16)) == TensorType((2, 0), torch.int16)
    assert graphc.TensorType is TensorType


def test_results_of_several():
    graph = Graph("g", Structure.of(((0,), {})), Structure.of((0, 0)))
    x = graph.add_input("x", TensorType((2, 3), torch.float32))
    pair = graph.call(aten.max.dim, x, 1)
    items = [graph.call(operator.getitem, pair, index) for index in (0, 1)]
    assert [str(item.meta["type"]) for item in items] == ["f32[2]", "i64[2]"]
    graph.set_output(items)
    verify(graph)
    values, places = graph.run(torch.tensor([[1.0, 3, 2], [math.inf, 0, 1]]))
    assert values.tolist() == [3, math.inf]
    assert places.tolist() == [1, 0]


def test_every_failure_is_an_error_of_ours():
    assert issubclass(InputError, GraphcError)
