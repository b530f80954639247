"""A small classifier with the analysis's inputs, in float64-like conditions: one thread, seeded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import graphc
from graphc.analysis.candidates import Candidates, candidates
from graphc.graph import Graph
from graphc.pipeline import CLEAN, PassContext, Pipeline

FORMATS = ("linear", "linear(bits=4)", "linear(bits=2)", "vector(d=2,codewords=16)", "sparse")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def graph() -> Graph:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(72, 5),
    ).eval()  # fmt: skip
    return Pipeline(CLEAN).run(graphc.trace(model, (torch.randn(4, 3, 8, 8),)))


@pytest.fixture(scope="package")
def ctx() -> PassContext:
    generator = torch.Generator().manual_seed(1)
    return PassContext(calibration=[[torch.randn(4, 3, 8, 8, generator=generator)] for _ in range(4)])


@pytest.fixture(scope="package")
def found(graph: Graph, ctx: PassContext) -> Candidates:
    return candidates(graph, FORMATS, ctx)
