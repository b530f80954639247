"""PyTorch models in: calls of all kinds, stored tensors, provenance, dynamic sizes."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from graphc.errors import CaptureError, GraphcError, InputError
from graphc.frontends import trace
from graphc.pipeline import PRESETS, Pipeline
from graphc.tensor_type import SymbolRange
from graphc.text import dump, parse
from graphc.verifier import verify


class Model(nn.Module):
    """A module of one function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args, **kwargs):
        return self.function(*args, **kwargs)


class Both(Model):
    """Of two named inputs, for dynamic shapes."""

    def forward(self, x, y=None):
        return self.function(x) if y is None else self.function(x, y)


def traced(model, *args, dynamic_shapes=None, **kwargs):
    """The graph of a module or function, checked against it on its example."""
    if not isinstance(model, nn.Module):
        model = Model(model) if dynamic_shapes is None else Both(model)
    graph = trace(model, args, kwargs, dynamic_shapes)
    verify(graph)
    assert dump(parse(dump(graph), graph.weights)) == dump(graph)
    with torch.no_grad():
        assert_same(graph.run(*args, **kwargs), model.eval()(*args, **kwargs))
    return graph


def assert_same(found, expected):
    """Equal results, whatever containers torch's own hold them."""
    if dataclasses.is_dataclass(expected):
        expected = {field.name: getattr(expected, field.name) for field in dataclasses.fields(expected)}
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected)
    elif isinstance(expected, tuple | list):
        assert isinstance(found, tuple if isinstance(expected, tuple) else list)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value)
    else:
        assert (type(found), found) == (type(expected), expected)


X, Y = torch.randn(2, 3), torch.randn(2, 3)


# -- calls ---------------------------------------------------------------------------------------


def test_several_inputs_and_outputs():
    graph = traced(lambda a, b: (a + b, a * b), X, Y)
    assert [node.name for node in graph.placeholders] == ["args_0", "args_1"]
    assert isinstance(graph.run(X, Y), tuple)


def test_keyword_arguments_in_any_order():
    class Named(nn.Module):
        def forward(self, x, *, scale, shift=None):
            return x * scale + shift

    graph = traced(Named(), X, scale=Y, shift=X)
    torch.testing.assert_close(graph.run(X, shift=X, scale=Y), X * Y + X)
    with pytest.raises(InputError, match="scale"):
        graph.run(X, shift=X)


def test_nested_inputs():
    def function(batch, pair):
        return batch["ids"] @ batch["w"][0] + pair[1]

    example = {"ids": X, "w": [torch.randn(3, 4)]}, (X, torch.randn(2, 4))
    graph = traced(function, *example)
    reordered = {"w": example[0]["w"], "ids": X}
    torch.testing.assert_close(graph.run(reordered, example[1]), function(*example))


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclasses.dataclass
class Result:
    logits: Tensor
    hidden: list


torch.utils._pytree.register_dataclass(Result)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (lambda x: {"b": x + 1, "a": [x, (x * 2,)]}, dict),
        (lambda x: [x + 1, None, 3, 2.5, True, "text"], list),
        (lambda x: Pair(x + 1, x), tuple),
        (lambda x: Result(x + 1, [x]), dict),
        (lambda x: (x, x), tuple),
        (lambda x: x, Tensor),
        (lambda x: x + 1, Tensor),
    ],
    ids=["dict", "constants", "named tuple", "data class", "the input twice", "the input", "tensor"],
)
def test_outputs(function, kind):
    assert isinstance(traced(function, X).run(X), kind)


def test_constants_must_stay():
    graph = traced(lambda x, power, flag, nothing: x**power if flag else x, X, 2, True, None)
    assert len(graph.placeholders) == 1
    for args in ((X, 3, True, None), (X, 2, False, None), (X, 2, True, 1), (X, 2.0, True, None), (X, X, True, None)):
        with pytest.raises(InputError, match=r"was .* when the model was traced and must stay so"):
            graph.run(*args)


def test_integer_and_boolean_tensors():
    graph = traced(
        lambda i, m, b: (torch.where(m, i, -i), b // 2, i.to(torch.float32)),
        torch.randint(-5, 5, (2, 3)), torch.rand(2, 3) < 0.5, torch.randint(0, 255, (4,), dtype=torch.uint8),
    )  # fmt: skip
    assert [str(node.meta["type"]) for node in graph.placeholders] == ["i64[2, 3]", "bool[2, 3]", "u8[4]"]


def test_inputs_that_are_not_used_stay():
    graph = traced(lambda a, b: a + 1, X, Y)
    assert len(graph.placeholders) == 2


@pytest.mark.parametrize("dtype", [torch.complex64, torch.uint16])
def test_other_dtypes(dtype):
    with pytest.raises(GraphcError, match=f"(?s){str(dtype).removeprefix('torch.')}; graphc takes f64, f32, f16"):
        trace(Model(lambda x: x.clone()), (torch.zeros(2, dtype=dtype),))


def test_inputs_that_are_no_tensors():
    with pytest.raises(CaptureError):
        trace(Model(lambda x, y: x), (X, object()))


# -- stored tensors ------------------------------------------------------------------------------


class Stored(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.lin.weight
        self.register_buffer("offset", torch.arange(3.0))
        self.register_buffer("scratch", torch.ones(3), persistent=False)
        self.constant = torch.full((3,), 0.5)
        self.unused = nn.Parameter(torch.ones(1000))

    def forward(self, x):
        return self.tied(self.lin(x)) + self.offset * self.scratch - self.constant + torch.tensor([1.0, 2.0, 3.0])


def test_parameters_buffers_and_constants():
    graph = traced(Stored(), X)
    assert {"lin.bias", "offset", "scratch", "constant"} <= set(graph.weights)
    assert "unused" not in graph.weights
    (tied,) = {"lin.weight", "tied.weight"} & set(graph.weights)  # one tensor, stored once
    assert sum(len(node.users) for node in graph if node.target == tied) == 2


def test_equal_tensors_that_are_not_tied_stay_apart():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].load_state_dict(model[0].state_dict())
    assert {"0.weight", "1.weight"} <= set(traced(model, X).weights)


def test_views_of_one_tensor():
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            table = torch.arange(12.0)
            self.register_buffer("whole", table.reshape(3, 4))
            self.register_buffer("turned", table.reshape(3, 4).t())
            self.register_buffer("part", table[3:6])
            self.register_buffer("start", table[:3])

        def forward(self, x):
            return x @ self.whole, self.turned @ x.t(), x * self.part, x * self.start

    graph = traced(Views(), X)
    assert all(tensor.is_contiguous() for tensor in graph.weights.values())


def test_the_graph_does_not_share_memory_with_the_model():
    model = nn.Linear(3, 3)
    graph = trace(model, (X,))
    before = graph.run(X)
    with torch.no_grad():
        model.weight.zero_()
    torch.testing.assert_close(graph.run(X), before)


# -- the model is left as it was -----------------------------------------------------------------


def test_training_mode_is_restored():
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)))
    model.train()
    model[1][1].eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = trace(model, (X,))
    assert [module.training for module in model.modules()] == [True, True, True, True, False]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(graph.run(X), model.eval()(X))


def test_training_mode_is_restored_after_a_failure():
    model = nn.Sequential(nn.Linear(3, 3), Model(lambda x: x if x.sum() > 0 else -x))
    model.train()
    with pytest.raises(CaptureError):
        trace(model, (X,))
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_batch_normalization_is_that_of_inference():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    model[1].running_mean.fill_(3)
    graph = Pipeline("canonicalize,fold_batchnorm").run(traced(model, torch.randn(1, 1, 2, 2)))
    assert [str(node.target) for node in graph.calls] == ["aten.convolution.default"]


# -- provenance ----------------------------------------------------------------------------------


def test_every_node_has_the_user_s_layer():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 3))])

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return F.relu(x)

    graph = traced(nn.Sequential(Block(), Block()), X)
    assert [node.meta["path"] for node in graph.calls] == [
        f"{block}{layer}" for block in "01" for layer in (".layers.0", ".layers.1.0", ".layers.1.1", "")
    ]
    assert {node.meta["path"] for node in graph if node.op == "get_attr"} == {
        f"{block}.layers.{layer}" for block in "01" for layer in ("0", "1.1")
    }


def test_a_layer_used_twice_has_one_name():
    relu = nn.ReLU()
    graph = traced(nn.Sequential(relu, nn.Linear(3, 3), relu), X)
    assert len(graph.calls) == 3
    assert len({node.name for node in graph}) == len(graph.fx.nodes)


# -- dynamic sizes -------------------------------------------------------------------------------

BATCH, LENGTH = Dim("batch", min=1, max=64), Dim("length", min=2, max=32)


def test_dimensions_have_the_user_s_names_and_ranges():
    graph = traced(
        lambda x, y: (x @ y.transpose(1, 2), x.reshape(x.shape[0], -1)),
        torch.randn(3, 5, 4), torch.randn(3, 7, 4),
        dynamic_shapes=({0: BATCH, 1: LENGTH}, {0: BATCH, 1: Dim("other", min=1, max=9)}),
    )  # fmt: skip
    assert graph.symbols == {"batch": SymbolRange(1, 64), "length": SymbolRange(2, 32), "other": SymbolRange(1, 9)}
    assert [str(node.meta["type"]) for node in graph.placeholders] == ["f32[batch, length, 4]", "f32[batch, other, 4]"]
    assert [str(node.meta["type"]) for node in graph.output.args[0]] == [
        "f32[batch, length, other]",
        "f32[batch, 4*length]",
    ]
    x, y = torch.randn(1, 2, 4), torch.randn(1, 9, 4)
    torch.testing.assert_close(graph.run(x, y)[0], x @ y.transpose(1, 2))


@pytest.mark.parametrize("batch", [1, 2, 3, 16])
def test_a_dynamic_network_after_the_passes(batch, network):
    known = network("dynamic_batch")
    graph = Pipeline(PRESETS["float"]).run(known.graph)
    x = torch.randn(batch, 2, 8, 8)
    torch.testing.assert_close(graph.run(x), known.graph.run(x))
    assert graph.run(x).shape == (batch, 3)


def test_named_inputs_with_dynamic_sizes():
    class Named(nn.Module):
        def forward(self, x, mask=None):
            return x * mask

    graph = traced(
        Named(), torch.randn(3, 4), mask=torch.randn(3, 1), dynamic_shapes={"x": {0: BATCH}, "mask": {0: BATCH}}
    )
    assert set(graph.symbols) == {"batch"}
    assert graph.run(torch.ones(7, 4), mask=torch.ones(7, 1)).shape == (7, 4)
    with pytest.raises(InputError, match="size 'batch' must lie between 1 and 64, the inputs make it 65"):
        graph.run(torch.ones(65, 4), mask=torch.ones(65, 1))


def test_sizes_that_the_code_computes_with():
    graph = traced(
        lambda x: (torch.cat([x, x[:, :1]], 1), x.new_zeros(x.shape[0], 2 * x.shape[1]) + 1, x * x.shape[1]),
        torch.randn(3, 8), dynamic_shapes={"x": {0: BATCH, 1: LENGTH}},
    )  # fmt: skip
    for batch, length in ((1, 2), (5, 9)):
        one, two, three = graph.run(torch.ones(batch, length))
        assert one.shape == (batch, length + 1)
        assert two.tolist() == [[1.0] * (2 * length)] * batch
        assert three.tolist() == [[float(length)] * length] * batch


def test_a_size_must_have_a_maximum():
    with pytest.raises(CaptureError, match=r"dynamic size 'batch' has no maximum.*Dim\(\"batch\", min=1, max=...\)"):
        trace(Both(lambda x: x + 1), (X,), dynamic_shapes={"x": {0: Dim("batch")}})


def test_sizes_in_terms_of_others():
    graph = traced(
        lambda x, y: torch.cat([x, y]), torch.randn(4, 3), torch.randn(2, 3),
        dynamic_shapes=({0: 2 * BATCH}, {0: BATCH}),
    )  # fmt: skip
    assert graph.run(torch.ones(6, 3), torch.ones(3, 3)).shape == (9, 3)
    with pytest.raises(InputError, match=r"input 'x' must be f32\[2\*batch, 3\], got f32\[5, 3\]"):
        graph.run(torch.ones(5, 3), torch.ones(2, 3))


def test_a_size_that_no_input_tells():
    with pytest.raises(GraphcError, match="is no dimension of an input by itself"):
        verify(trace(Both(lambda x: x + 1), (torch.randn(4, 3),), dynamic_shapes=({0: 2 * BATCH},)))


def test_a_size_whose_smallest_value_torch_forgets():
    """torch.export takes sizes for at least 2; x[:2] of one row is one row."""
    with pytest.raises(GraphcError, match="but where batch = 1 its shape is"):
        verify(trace(Both(lambda x: x[:2]), (torch.randn(4, 3),), dynamic_shapes=({0: BATCH},)))
    at_least_two = Dim("batch", min=2, max=8)
    assert traced(lambda x: x[:2], torch.randn(4, 3), dynamic_shapes=({0: at_least_two},)).run(
        torch.ones(2, 3)
    ).shape == (2, 3)


def test_a_size_with_the_name_of_a_keyword():
    graph = traced(lambda x: x @ x.t(), torch.randn(4, 3), dynamic_shapes=({0: Dim("class", min=1, max=8)},))
    assert set(graph.symbols) == {"class_"}


def test_a_size_that_the_model_fixes():
    with pytest.raises(CaptureError, match=r"(?s)cannot trace Linear.*Check dynamic_shapes"):
        trace(nn.Linear(3, 3), (X,), dynamic_shapes={"input": {1: Dim("width", min=1, max=9)}})


def test_a_size_as_a_result():
    with pytest.raises(CaptureError, match=r"output 1 is batch \(Symbol\); a model takes and returns tensors"):
        trace(Both(lambda x: (x, x.shape[0])), (X,), dynamic_shapes={"x": {0: BATCH}})
