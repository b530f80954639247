"""Pipelines: written as printed, run in order, and every failure names its pass."""

from __future__ import annotations

import random
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import graphc
from graphc import pipeline as module
from graphc.errors import CalibrationError, GraphcError, PassError
from graphc.graph import Graph
from graphc.pipeline import (
    PRESETS,
    Pass,
    PassContext,
    PassFailure,
    Pipeline,
    find_pass,
    parse_passes,
    pass_names,
    pipeline,
)
from graphc.structure import Structure
from graphc.tensor_type import TensorType
from graphc.text import dump

aten = torch.ops.aten


@dataclass(frozen=True)
class Knobs(Pass):
    """All kinds of options."""

    count: int = 3
    rate: float = 0.5
    loud: bool = False
    label: str = "plain"
    mode: Literal["fast", "small"] = "fast"
    paths: tuple[str, ...] = ()
    sizes: tuple[int, ...] = (1, 2)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        return graph


@dataclass(frozen=True)
class NegateTwice(Pass):
    """A custom pass in five lines."""

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        result = graph.clone()
        for node in [node for node in result.calls if node.target is aten.relu.default]:
            with result.at(node):
                result.replace(node, result.call(aten.neg.default, result.call(aten.neg.default, node.args[0])))
        return result


@pytest.fixture
def graph() -> Graph:
    graph = Graph("g", Structure.of(((0,), {})), Structure.of(0))
    x = graph.add_input("x", TensorType((2, 3), torch.float32))
    graph.set_output([graph.call(aten.relu.default, x, name="y")])
    return graph


@pytest.fixture
def knobs(monkeypatch):
    """`knobs` as a pass that another package brings."""

    def entries(group: str) -> list[EntryPoint]:
        assert group == "graphc.passes"
        return [EntryPoint("knobs", f"{__name__}:Knobs", group)]

    monkeypatch.setattr(module, "entry_points", entries)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Knobs)


# -- spec strings --------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [*PRESETS.values(), "quantize{bits=8}", "fuse_operators{limit=4},drop_unused", ""])
def test_a_pipeline_prints_as_it_is_written(spec):
    printed = str(Pipeline(spec))
    assert str(Pipeline(printed)) == printed
    assert Pipeline(printed).passes == Pipeline(spec).passes


def test_only_what_is_not_the_default_is_printed():
    assert str(Pipeline(" fuse_operators { limit = 4 } , quantize{calibration=mse,bits=8,exclude=[]} , ")) == (
        "fuse_operators{limit=4},quantize"
    )


values = st.text(max_size=10)


@given(
    st.builds(
        Knobs,
        st.integers(),
        st.floats(allow_nan=False),
        st.booleans(),
        values,
        st.sampled_from(["fast", "small"]),
        st.lists(values, max_size=3).map(tuple),
        st.lists(st.integers(), max_size=3).map(tuple),
    )
)
def test_any_options_round_trip(item):
    text = str(item)
    name, _, options = text.partition("{")
    assert name == "knobs"
    assert module._build(Knobs, "knobs", options.removesuffix("}")) == item


def test_strings_may_hold_what_the_syntax_uses(knobs):
    item = Knobs(label='a,b}{"', paths=("layer[12].*", 'quo"te', "}", ""))
    assert parse_passes(f"drop_unused,{item},drop_unused")[1] == item


def test_values_need_no_quotes_where_they_are_plain(knobs):
    assert parse_passes("knobs{paths=[head*, body.0],sizes=[],loud=True,label=fc}")[0] == Knobs(
        paths=("head*", "body.0"), sizes=(), loud=True, label="fc"
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "fold_batchnrm",
            r"unknown pass 'fold_batchnrm' \(did you mean 'fold_batchnorm'\?\); known passes: activation_aware_",
        ),
        ("zzz", "unknown pass 'zzz'; known passes: "),
        ("drop_unused fuse_operators", "cannot read the pipeline at 'drop_unused fuse_operators'"),
        ("drop_unused,,fuse_operators", "cannot read the pipeline at ',fuse_operators'"),
        ("drop_unused{", "cannot read the pipeline at 'drop_unused{'"),
        ("drop_unused}", "cannot read the pipeline"),
        ("drop_unused{x=1}", "pass 'drop_unused' has no option 'x'; its options: none"),
        ("knobs{cuont=1}", "pass 'knobs' has no option 'cuont'; its options: count, rate, "),
        ("knobs{count}", "cannot read the options of 'knobs' at 'count'"),
        ("knobs{count=1 2}", "pass 'knobs': count=1 2 is no int"),
        ("knobs{count=}", "pass 'knobs': count= is no int"),
        ("knobs{count=1.5}", "pass 'knobs': count=1.5 is no int"),
        ("knobs{count=[1]}", r"pass 'knobs': count=\[1\] is no int"),
        ("knobs{rate=high}", "pass 'knobs': rate=high is no float"),
        ("knobs{loud=1}", "pass 'knobs': loud=1 is no bool"),
        ("knobs{mode=slow}", "pass 'knobs': mode=slow must be one of fast, small"),
        ("knobs{sizes=[1,b]}", "pass 'knobs': sizes=b is no int"),
        (r'knobs{label="\q"}', "is no string"),
        ("knobs{count=1,count=2}", "pass 'knobs' has the option 'count' twice"),
    ],
)
def test_what_cannot_be_read(spec, message, knobs):
    with pytest.raises(PassError, match=message):
        Pipeline(spec)


# -- the registry --------------------------------------------------------------------------------


def test_every_file_is_a_pass_of_its_name():
    for name in pass_names():
        kind = find_pass(name)
        assert kind().name == name
        assert kind.fidelity in ("exact", "close", "lossy")
        assert kind.__doc__


def test_passes_of_other_packages(knobs, graph):
    assert pass_names()[-1] == "knobs"
    assert find_pass("knobs") is Knobs
    assert Pipeline("knobs{count=7}").passes == (Knobs(count=7),)
    with pytest.raises(PassError, match="did you mean 'knobs'"):
        find_pass("knbos")


def test_pipelines_from_all_that_stands_for_one():
    assert str(pipeline("float")) == str(Pipeline(PRESETS["float"]))
    assert str(pipeline("drop_unused")) == "drop_unused"
    assert pipeline([Knobs(count=1)]).passes == (Knobs(count=1),)
    known = Pipeline("drop_unused")
    assert pipeline(known) is known


# -- running -------------------------------------------------------------------------------------


def test_a_custom_pass(graph):
    result = Pipeline([NegateTwice()]).run(graph)
    x = torch.randn(2, 3)
    assert torch.equal(result.run(x), x)
    assert "aten.neg.default(%neg_default) : f32[2, 3]" in dump(result)
    assert torch.equal(graph.run(x), x.relu())


def test_order_and_watchers(graph):
    seen = []
    result = Pipeline([NegateTwice(), Knobs(), *parse_passes("fuse_operators")]).run(
        graph, watch=[lambda step, before, after: seen.append((str(step), step.total, before, after))]
    )
    assert [name for name, *_ in seen] == ["01_negate_twice", "02_knobs", "03_fuse_operators"]
    assert {total for _, total, *_ in seen} == {3}
    befores, afters = [item[2] for item in seen], [item[3] for item in seen]
    assert befores == [graph, afters[0], afters[1]]
    assert afters[0] is afters[1]
    assert afters[-1] is result


class Failing(Pass):
    def __init__(self, action) -> None:
        object.__setattr__(self, "action", action)

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        return self.action(graph, ctx)


def test_a_pass_that_crashes(graph):
    with pytest.raises(PassFailure, match=r"^pass 'failing' failed: ZeroDivisionError: ") as caught:
        Pipeline([NegateTwice(), Failing(lambda graph, ctx: 1 // 0)]).run(graph)
    assert caught.value.applied.name == "failing"
    assert "aten.neg" in dump(caught.value.before)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_pass_with_a_message_for_the_user(graph):
    def fail(graph, ctx):
        raise CalibrationError("more data")

    with pytest.raises(CalibrationError, match=r"^more data$") as caught:
        Pipeline([Failing(fail)]).run(graph)
    assert caught.value.__cause__ is None


def test_a_pass_that_makes_a_wrong_graph(graph):
    def swap(graph, ctx):
        result = graph.clone()
        result.calls[0].meta["type"] = TensorType((3, 2), torch.float32)
        return result

    with pytest.raises(PassFailure, match=r"^the result of pass 'failing' is wrong: %y is recorded as") as caught:
        Pipeline([Failing(swap)]).run(graph)
    assert caught.value.before is graph


def test_a_pass_that_calls_an_operator_on_what_it_cannot_take(graph):
    def multiply(graph, ctx):
        result = graph.clone()
        with result.at(result.output):
            result.call(aten.mm.default, result.calls[0], result.calls[0])
        return result

    with pytest.raises(PassFailure, match=r"'failing' is wrong: %mm_default = aten.mm.default cannot take %y: f32"):
        Pipeline([Failing(multiply)]).run(graph)


def test_a_pass_that_returns_nothing(graph):
    with pytest.raises(PassFailure, match="pass 'failing' failed"):
        Pipeline([Failing(lambda graph, ctx: None)]).run(graph)


def test_a_watcher_that_crashes_is_not_the_pass_s_fault(graph):
    def full(step, before, after):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Pipeline("drop_unused").run(graph, watch=[full])


def test_every_failure_is_an_error_of_ours():
    assert issubclass(PassFailure, PassError)
    assert issubclass(PassError, GraphcError)
    assert graphc.Pipeline is Pipeline


def test_random_passes_repeat_and_leave_the_user_s_numbers_alone(graph):
    drawn = []

    def draw(graph, ctx):
        drawn.append((random.random(), float(torch.rand(()))))
        return graph

    torch.manual_seed(5)
    random.seed(5)
    expected = random.random(), float(torch.rand(()))
    torch.manual_seed(5)
    random.seed(5)
    Pipeline([Failing(draw), Failing(draw)]).run(graph)
    Pipeline([Failing(draw)]).run(graph, PassContext(seed=1))
    assert (random.random(), float(torch.rand(()))) == expected
    assert drawn[0] == drawn[1] != drawn[2]
