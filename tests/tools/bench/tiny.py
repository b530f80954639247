"""A workload and engines for the tests, which the workers import by name."""

from __future__ import annotations

import os
import time

import torch

from graphc.tools.bench.case import Case
from graphc.tools.bench.engines import Bind, Run, eager
from graphc.tools.bench.workloads import Workload


def _network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).eval()


def _inputs(batch: int) -> tuple[torch.Tensor, ...]:
    return (torch.linspace(-1, 1, 8 * batch).view(batch, 8),)


def _evaluate(run, limit, batch):
    return 100.0 * sum(bool(run(*_inputs(batch))[0].shape == (batch, 4)) for _ in range(limit)) / limit


WORKLOADS = {
    "tiny": Workload("tiny", "static", _network, _inputs, lambda: [_inputs(1)] * 100, _evaluate, "fraction %"),
    "broken": Workload("broken", "static", lambda: torch.nn.Linear(3, 3), _inputs, lambda: []),
}


def prepare(case: Case) -> None:
    """Precisions are the tests' own: each is one way to go wrong."""
    if case.precision == "unpreparable":
        raise ValueError("this network is not supported\nand more")
    (case.folder / "prepared at").write_text(str(time.monotonic_ns()))


def load(case: Case) -> Bind:
    if case.precision == "missing":
        import a_package_that_is_not_there  # noqa: F401
    if case.precision == "dying":
        os._exit(3)
    network = case.work.build()

    def bind(inputs: tuple[torch.Tensor, ...]) -> Run:
        right = eager.binding(network)(inputs)
        if case.precision == "wrong":
            return lambda: [-right()[0]]
        if case.precision == "not a number":
            return lambda: [right()[0] * float("nan")]
        if case.precision == "other shape":
            return lambda: [right()[0][:, :2]]
        return right

    return bind
