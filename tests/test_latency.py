"""The table of measured latencies: whose step is whose layer, what is kept, and what is said of slow formats."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import graphc
from graphc.artifact import Artifact
from graphc.errors import TargetError, TuningError
from graphc.graph import Graph
from graphc.latency import FORMATS, measure
from graphc.target import Target

HOST = Target.parse("host")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide, self.again = nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.wide(self.narrow(x).relu()).relu())  # type: ignore[no-any-return]


class Stopwatch(Executor):
    """Times by the version (its place among the files) and the step's layer, in place of a device."""

    def __init__(self, nanoseconds: dict[str, tuple[float, ...]]) -> None:
        self.nanoseconds, self.versions = nanoseconds, 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        files, *_ = args
        plans = [Artifact(content).plan for content in files]
        self.versions += len(plans)
        job: Future[Any] = Future()
        job.set_result([self.times(plan, version) for version, plan in enumerate(plans)])
        return job

    def times(self, plan: dict[str, Any], version: int) -> list[float]:
        """All of a layer's time is its first step's."""
        left = {layer: times[version] for layer, times in self.nanoseconds.items()}
        return [left.pop(step["path"], 0.0) for step in plan["steps"][plan["init_steps"] :]]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return graphc.trace(Network(), (torch.randn(2, 8),))


INT4 = {"int4 g32": FORMATS["int4 g32"]}


def test_steps_belong_to_layers_and_equal_layers_share_their_mean(graph: Graph, tmp_path: Path) -> None:
    watch = Stopwatch({"narrow": (9e3, 1.0), "wide": (10e3, 4e3), "again": (12e3, 6e3)})
    table = measure(graph, HOST, INT4, executor=watch, cache=tmp_path / "latency.json")
    assert table["narrow", "f32"].nanoseconds == 9e3
    assert [table[layer, "f32"].nanoseconds for layer in ("wide", "again")] == [11e3, 11e3]
    assert table["wide", "int4 g32"].nanoseconds < table["wide", "f32"].nanoseconds
    assert ("narrow", "int4 g32") not in table, "8 columns are no whole groups of 32"
    assert list(table.slower()) == []


def test_what_was_measured_is_not_measured_again(graph: Graph, tmp_path: Path) -> None:
    watch = Stopwatch({})
    first = measure(graph, HOST, INT4, executor=watch, cache=tmp_path / "latency.json")
    assert watch.versions == 2
    again = measure(graph, HOST, INT4, executor=watch, cache=tmp_path / "latency.json")
    assert watch.versions == 2 and list(again) == list(first)
    measure(graph, HOST, INT4 | {"int2 g32": FORMATS["int2 g32"]}, executor=watch, cache=tmp_path / "latency.json")
    assert watch.versions == 3
    measure(graph, HOST, INT4, executor=watch, threads=1, cache=tmp_path / "latency.json")
    assert watch.versions == 5, "another number of threads is another measurement"


@pytest.mark.parametrize(("nanoseconds", "reason"), [(20e3, "bound by"), (2e3, "starting the kernel")])
def test_a_format_that_is_not_faster_has_a_reason(
    graph: Graph, nanoseconds: float, reason: str, tmp_path: Path
) -> None:
    watch = Stopwatch({layer: (nanoseconds, nanoseconds) for layer in ("wide", "again")})
    table = measure(graph, HOST, INT4, executor=watch, cache=tmp_path / "latency.json")
    slower = list(table.slower())
    assert {(entry.layer, entry.format) for entry in slower} == {("wide", "int4 g32"), ("again", "int4 g32")}
    assert all(entry.reason for entry in slower)
    if not table["wide", "int4 g32"].reason:
        assert all(reason in entry.reason for entry in slower)


def test_this_machine_times_its_own_code_and_reads_its_own_file(graph: Graph, tmp_path: Path) -> None:
    table = measure(graph, HOST, {"int8": FORMATS["int8"]}, rounds=1, cache=tmp_path / "latency.json")
    assert all(entry.nanoseconds > 0 for entry in table) and ("wide", "int8") in table
    other = "arm64" if HOST.arch == "x86-64" else "x86-64"
    with pytest.raises(TargetError, match="cannot time"):
        measure(graph, Target.parse(other), INT4, cache=tmp_path / "latency.json")
    (tmp_path / "latency.json").write_text("[")
    with pytest.raises(TuningError, match=r"latency\.json"):
        measure(graph, HOST, INT4, cache=tmp_path / "latency.json")
