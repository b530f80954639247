"""Watchers: dumps that can be read again, timing, and drift that names the pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch

from graphc.graph import Graph
from graphc.pipeline import PRESETS, Pass, PassContext, PassFailure, Pipeline
from graphc.structure import Structure
from graphc.tensor_type import TensorType
from graphc.text import dump, read
from graphc.watch import Drift, DumpIR, Timing, drift

aten = torch.ops.aten


@dataclass(frozen=True)
class Scale(Pass):
    """Multiplies the results by a factor, and promises not to."""

    factor: float = 1.0
    result: int = 0

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        result = graph.clone()
        results = list(result.output.args[0])
        with result.at(result.output):
            results[self.result] = result.call(aten.mul.Tensor, results[self.result], self.factor)
        result.output.args = (tuple(results),)
        return result


class CloseScale(Scale):
    fidelity = "close"


class LossyScale(Scale):
    fidelity = "lossy"


@pytest.fixture
def graph() -> Graph:
    graph = Graph("g", Structure.of(((0,), {})), Structure.of((0, 0)))
    x = graph.add_input("x", TensorType((4,), torch.float32))
    graph.set_output([graph.call(aten.mul.Tensor, x, 1e6), graph.call(aten.sigmoid.default, x)])
    return graph


PROBE = [torch.linspace(-1, 2, 4)]


def test_dumps_are_numbered_and_can_be_read_again(network, tmp_path):
    known = network("residual")
    graphs = []
    dumps = DumpIR(tmp_path / "ir")
    Pipeline(PRESETS["int8"]).run(
        known.graph,
        PassContext(calibration=known.calibration),
        [dumps, lambda step, before, after: graphs.append(after)],
    )
    assert [path.name for path in dumps.written] == sorted(path.name for path in (tmp_path / "ir").glob("*.txt"))
    assert [path.name for path in dumps.written][:3] == ["00_input.txt", "01_canonicalize.txt", "02_fold_constants.txt"]
    for path, graph in zip(dumps.written, [known.graph, *graphs], strict=True):
        again = read(path)
        assert dump(again) == dump(graph)
        for old, new in zip(graph.run_flat(list(known.inputs)), again.run_flat(list(known.inputs)), strict=True):
            assert torch.equal(old, new)


def test_timing(graph):
    timing = Timing()
    Pipeline([Scale(), LossyScale()]).run(graph, watch=[timing])
    assert [(name, before, after) for name, _, before, after in timing.rows] == [("scale", 4, 5), ("lossy_scale", 5, 6)]
    assert all(seconds > 0 for _, seconds, *_ in timing.rows)


@pytest.mark.parametrize(
    "item", [Scale(1.001), Scale(-1.0), CloseScale(1.2), Scale(math.nan), Scale(math.inf)], ids=str
)
@pytest.mark.parametrize("result", [0, 1])
def test_drift_beyond_the_promise_names_the_pass(graph, item, result):
    """Also in the smaller result, beside one that is a million times larger."""
    item = type(item)(item.factor, result)
    with pytest.raises(
        PassFailure, match=f"the result of pass '{item.name}.*it promises to be {item.fidelity}"
    ) as caught:
        Pipeline([Scale(1.0), item]).run(graph, watch=[Drift(PROBE)])
    assert caught.value.applied is item


@pytest.mark.parametrize("item", [Scale(1 + 1e-6), CloseScale(1.01), LossyScale(3.0)], ids=str)
def test_drift_within_the_promise(graph, item):
    watcher = Drift(PROBE)
    Pipeline([item, *Pipeline("drop_unused").passes]).run(graph, watch=[watcher])
    assert watcher.rows[0].sqnr == pytest.approx(-20 * math.log10(abs(item.factor - 1)), abs=1)
    assert watcher.rows[0].max_error == pytest.approx(2e6 * abs(item.factor - 1), rel=0.2)
    assert watcher.rows[1] == drift("drop_unused", PROBE, PROBE)


def test_networks_keep_their_promises_under_watch(traced):
    for preset in PRESETS.values():
        watcher = Drift(traced.inputs)
        Pipeline(preset).run(traced.graph, PassContext(calibration=traced.calibration), [watcher])
        assert len(watcher.rows) == len(Pipeline(preset).passes)


def test_what_counts_as_equal():
    odd = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    assert drift("", [odd], [odd.clone()]).sqnr == math.inf
    assert drift("", [odd], [torch.tensor([math.nan, math.inf, -math.inf, 1.1])]).max_error == pytest.approx(0.1)
    for other in (
        [0.0, math.inf, -math.inf, 1.0],
        [math.nan, -math.inf, -math.inf, 1.0],
        [math.nan, 1.0, -math.inf, 1.0],
    ):
        assert drift("", [odd], [torch.tensor(other)]).sqnr == -math.inf
    assert drift("", [torch.zeros(3)], [torch.tensor([0.0, 0.0, 1e-9])]).sqnr == -math.inf
    assert drift("", [torch.zeros(0)], [torch.zeros(0)]).sqnr == math.inf
    assert drift("", [torch.ones(3)], [torch.ones(1)]).sqnr == -math.inf
    assert drift("", [torch.tensor([True, False])], [torch.tensor([True, True])]).sqnr == 0
    assert drift("", [], []).sqnr == math.inf
