"""Handwritten digits and a small network, trained once: what the tests of training begin with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import graphc
from graphc.graph import Graph
from graphc.trainable import Trainable
from graphc.training.loop import Samples, Training, train

BATCH = 50


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads only wait for each other, and the order of sums depends on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@cache
def _digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images / 16).to(torch.float32).flatten(1)
    labels = torch.from_numpy(bunch.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train_, test = order[:1200], order[1200:]
    return images[train_], labels[train_], images[test], labels[test]


@pytest.fixture
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [1200, 64] in [0, 1] and labels to train on; images [597, 64] and labels held out."""
    return _digits()


@pytest.fixture
def samples(digits) -> Samples:
    """Batches (images, labels)."""
    return Samples(digits[:2], BATCH)


@cache
def _teacher() -> Graph:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    batch = torch.export.Dim("batch", min=1, max=4096)
    graph = graphc.trace(model.eval(), (torch.randn(4, 64),), dynamic_shapes=({0: batch},))
    module = Trainable(graph)
    samples = Samples(_digits()[:2], BATCH)
    train(module, lambda batch: nn.functional.cross_entropy(module(batch[0]), batch[1]), samples, Training(240, 3e-3))
    return module.graph()


@pytest.fixture
def teacher() -> Graph:
    """A network 64-64-64-10 with a dynamic batch, trained for ten epochs."""
    return _teacher()


@pytest.fixture
def accuracy(digits):
    """accuracy(graph): percent of the held-out digits."""

    def measure(graph: Graph) -> float:
        with torch.no_grad():
            return 100 * float((graph.run(digits[2]).argmax(1) == digits[3]).float().mean())

    return measure
