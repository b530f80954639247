"""The search takes what measures fastest, and only that; the database keeps it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import pytest
import torch
from torch import nn

import graphc
from graphc import compiler
from graphc.artifact import Artifact
from graphc.graph import Graph
from graphc.measurement import step_times
from graphc.pipeline import pipeline
from graphc.program import Program
from graphc.target import Target
from graphc.tuning import Database, Tuned, tune
from graphc.tuning.search import LEAST_GAIN

HOST = Target.parse("host")
OPTIONS = {"rows": (1, 2, 4, 8), "unroll": (1, 2)}
DEFAULT = {"rows": 2, "unroll": 1}


class Stopwatch(Executor):
    """Says what each step takes by its parameters, in place of a device."""

    def __init__(self, nanoseconds: Callable[[dict[str, int]], float]) -> None:
        self.nanoseconds, self.jobs = nanoseconds, 0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        assert fn is step_times
        self.jobs += 1
        files, *_ = args
        plans = [Artifact(content).plan for content in files]
        job: Future[Any] = Future()
        job.set_result([[self.nanoseconds(s["parameters"]) for s in p["steps"][p["init_steps"] :]] for p in plans])
        return job


@pytest.fixture(scope="module")
def graph() -> Graph:
    return pipeline("float").run(graphc.trace(nn.Linear(4, 3), (torch.randn(1, 4),)))


@pytest.fixture(autouse=True)
def kernels_with_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel has the parameters of OPTIONS."""
    whole = compiler.lower

    def lower(graph: Graph, target: Target, progress: Any, tuned: Any = None) -> Program:
        program = whole(graph, target, progress, {})
        for step in program.plan["steps"]:
            step["workload"] = step["kernel"]
            step["parameters"] = DEFAULT | dict(tuned.get(step["kernel"], {}))
        return Program(
            program.code, program.weights, program.plan, {s["workload"]: OPTIONS for s in program.plan["steps"]}
        )

    monkeypatch.setattr(compiler, "lower", lower)


def test_each_parameter_is_searched_given_the_ones_before(graph: Graph) -> None:
    database, saved = Database(), []
    watch = Stopwatch(lambda p: 1000 - 100 * (p["rows"] == 8) - 50 * (p["rows"] == 8 and p["unroll"] == 2))
    found = tune(graph, HOST, database, executor=watch, save=lambda d: saved.append(len(d.of(HOST))))
    (entry,) = found.values()
    assert entry == Tuned({"rows": 8, "unroll": 2}, ("rows", "unroll"), 850, 1000)
    assert (watch.jobs, saved) == (3, [1, 1, 1])
    assert list(database.parameters(HOST).values()) == [{"rows": 8, "unroll": 2}]


def test_noise_does_not_replace_a_default(graph: Graph) -> None:
    found = tune(graph, HOST, Database(), executor=Stopwatch(lambda p: 1000 - p["rows"] * LEAST_GAIN * 100))
    (entry,) = found.values()
    assert entry.parameters == {} and entry.searched == ("rows", "unroll")


def test_a_search_goes_on_where_it_was(graph: Graph) -> None:
    database = Database()
    (workload,) = tune(graph, HOST, database, executor=Stopwatch(lambda p: 1000)).keys()
    database.of(HOST)[workload] = Tuned({"rows": 4}, ("rows",), 900, 1000)
    watch = Stopwatch(lambda p: 1000 if p == DEFAULT else 900 if p["unroll"] == 1 else 500 if p["rows"] == 4 else 100)
    found = tune(graph, HOST, database, executor=watch)
    assert found[workload] == Tuned({"rows": 4, "unroll": 2}, ("rows", "unroll"), 500, 1000)
    assert watch.jobs == 2
    assert tune(graph, HOST, database, executor=watch) == found and watch.jobs == 2


def test_what_does_not_win_again_is_left(graph: Graph) -> None:
    """The first two jobs are the search's, one for each parameter."""

    def nanoseconds(p: dict[str, int]) -> float:
        return 1000 - (100 * (p["rows"] == 8) if watch.jobs < 3 else 0)

    watch = Stopwatch(nanoseconds)
    (entry,) = tune(graph, HOST, Database(), executor=watch).values()
    assert entry == Tuned({}, ("rows", "unroll"), 1000, 1000)
