"""Models that have no fixed graph: one clear error each, with the layer and the line, and nothing left behind."""

from __future__ import annotations

import logging
import operator
import warnings

import pytest
import torch
from torch import nn

import graphc
from graphc.errors import CaptureError, UnsupportedOperatorError
from graphc.frontends import trace
from graphc.verifier import verify

X = torch.randn(2, 3)


class Function(nn.Module):
    """A module of one function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def traced(model, x):
    """The graph of a module or function, checked against it."""
    model = model if isinstance(model, nn.Module) else Function(model)
    graph = trace(model, (x,))
    verify(graph)
    with torch.no_grad():
        torch.testing.assert_close(graph.run(x), model(x))
    return graph


class Branching(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class Looping(nn.Module):
    def forward(self, x):
        while x.norm() > 1:
            x = x / 2
        return x


class Counting(nn.Module):
    def forward(self, x):
        return x[: int(x.argmax())]


@pytest.mark.parametrize("layer", [Branching, Looping])
def test_control_flow_on_data_names_the_layer_and_the_line(layer):
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), layer()))
    with pytest.raises(CaptureError) as caught:
        trace(model, (X,))
    text = str(caught.value)
    assert text.startswith("torch.export cannot trace Sequential in layer '1.1' (test_untraceable.py:")
    assert "branches or loops on the values of a tensor" in text
    assert "torch.where or torch.cond" in text
    assert "Traceback" not in text


def test_a_result_whose_size_depends_on_data():
    with pytest.raises(UnsupportedOperatorError, match=r"(?s)in layer '1'.*its size depends on the values of a tensor"):
        trace(nn.Sequential(nn.Linear(3, 3), Counting()), (X,))


def test_shapes_that_do_not_fit_name_the_layer():
    with pytest.raises(CaptureError, match=r"in layer '1': a and b must have same reduction dim"):
        trace(nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 2)), (X,))


def test_a_failing_model_of_one_layer():
    with pytest.raises(CaptureError, match=r"cannot trace Branching in layer 'Branching' \(test_untraceable.py:"):
        trace(Branching(), (X,))


class Writing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(3))

    def forward(self, x):
        self.count.add_(1)
        return x + self.count


def test_writing_to_a_buffer():
    model = Writing()
    with pytest.raises(
        CaptureError, match=r"the model writes to 'count' while it runs.*return the new state as an output"
    ):
        trace(model, (X,))
    assert model.count.tolist() == [0, 0, 0]


def test_writing_to_an_input():
    with pytest.raises(CaptureError, match="the model writes to 'x' while it runs"):
        trace(Function(lambda x: x.add_(1)), (X.clone(),))


def test_writing_to_its_own_values_is_fine():
    def function(x):
        y = x.clone()
        y[:, 0] = 5
        y += 1
        return y.relu_()

    graph = traced(function, X)
    assert not any(node.target._schema.is_mutable for node in graph.calls if node.target is not operator.getitem)


@pytest.mark.parametrize(
    "model", [nn.Sequential(nn.Linear(3, 3), Branching()), Writing(), nn.Linear(4, 4)], ids=["branch", "write", "shape"]
)
def test_a_failure_is_silent_and_leaves_no_trace(model, capfd):
    level = logging.root.manager.disable
    with warnings.catch_warnings(record=True) as caught, pytest.raises(CaptureError):
        warnings.simplefilter("always")
        trace(model, (X,))
    assert caught == []
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == level


def test_what_cannot_be_traced():
    with pytest.raises(CaptureError, match=r"cannot trace a function: give an nn.Module, an ExportedProgram"):
        trace(lambda x: x, (X,))
    with pytest.raises(CaptureError, match=r"tracing Linear needs example_inputs: graphc.trace\(model, \(x,\)\)"):
        trace(nn.Linear(3, 3))
    with pytest.raises(CaptureError):
        trace(nn.Linear(3, 3), (X, X))


def test_strict_tracing_where_the_other_fails(monkeypatch):
    tried = []
    export = torch.export.export

    def fail_first(*args, strict, **kwargs):
        tried.append(strict)
        if not strict:
            raise RuntimeError("not this time")
        return export(*args, strict=strict, **kwargs)

    monkeypatch.setattr(torch.export, "export", fail_first)
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    graph = traced(model, X)
    assert tried == [False, True]
    assert [node.meta["path"] for node in graph.calls] == ["0", "1"]


def test_an_exported_program_and_a_graph():
    model = nn.Linear(3, 3)
    program = torch.export.export(model, (X,))
    graph = graphc.trace(program)
    torch.testing.assert_close(graph.run(X), model(X))
    assert graphc.trace(graph) is graph
    assert trace(model, (X,), name="mine").name == "mine"
