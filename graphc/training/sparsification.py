"""Sparsification by training: a penalty that pushes weights to nought, then the largest threshold that the loss bears.

    DRR    alpha sum(1 - exp(-beta |w|))    gradient alpha beta sign(w) exp(-beta |w|): large weights are let alone
    R-L1   alpha sum |w|                    gradient alpha sign(w): all are pushed alike

("Efficient compression of neural networks and datasets", arXiv 2505.17469, which also has TAMADE: a binary search for
the largest global threshold at which the loss is at most (1 + delta) times what it was; then the mask is kept, and the
weights that are left are trained on.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Literal

import torch
from torch import Tensor, nn

from graphc.errors import TrainingError
from graphc.graph import Graph
from graphc.trainable import Trainable

aten = torch.ops.aten
_HALVINGS = 30


@dataclass(frozen=True)
class Penalty:
    """penalty(weights) -> scalar, to be added to a loss. beta: of DRR, in 1 / |w|."""

    alpha: float
    kind: Literal["drr", "l1"] = "drr"
    beta: float = 5.0

    def __post_init__(self) -> None:
        if self.alpha < 0 or self.beta <= 0 or self.kind not in ("drr", "l1"):
            raise TrainingError(f"{self}: alpha must not be negative, beta positive, kind one of drr, l1")

    def __call__(self, weights: Iterable[Tensor]) -> Tensor:
        total = torch.zeros(())
        for weight in weights:
            size = weight.abs()
            total = total + (size.sum() if self.kind == "l1" else -torch.expm1(-self.beta * size).sum())
        return self.alpha * total


def layer_weights(graph: Graph, exclude: Iterable[str] = ()) -> list[str]:
    """Names of the f32 weights of convolutions and linear layers whose path matches no pattern of `exclude`."""
    patterns = tuple(exclude)
    found: dict[str, None] = {}
    for node in graph.calls:
        weight = graph.weight(node.args[1]) if node.target in (aten.convolution.default, aten.linear.default) else None
        if weight is not None and not any(fnmatch(node.meta["path"], pattern) for pattern in patterns):
            found[str(node.args[1].target)] = None  # type: ignore[union-attr]
    return list(found)


@dataclass(frozen=True)
class Threshold:
    """What TAMADE found: |w| at or below `value` is nought, of `kept` weights out of `count` none is."""

    value: float
    loss: float
    kept: int
    count: int

    @property
    def ratio(self) -> float:
        """How many times fewer weights are left."""
        return self.count / max(1, self.kept)


def largest_threshold(
    graph: Graph, names: Iterable[str], loss: Callable[[Graph], float], delta: float = 0.02
) -> tuple[Graph, Threshold]:
    """The graph with all small weights set to nought, by the largest threshold with loss <= (1 + delta) * loss now.

    loss: of a graph on data, not negative. The search is over the sorted magnitudes of all named weights together: a
    threshold between two of them changes nothing. The loss need not be monotonic; as in TAMADE, it is taken to be.
    """
    chosen = list(names)
    if not chosen:
        raise TrainingError(f"graph '{graph.name}' has no weights to set to nought")
    magnitudes = torch.cat([graph.weights[name].detach().abs().flatten() for name in chosen]).sort().values
    bound = (1 + delta) * loss(graph)
    # The first `low` are known to be dispensable, `high` to be too many.
    low, high = 0, len(magnitudes) + 1
    best, reached = graph, loss(graph)
    for _ in range(_HALVINGS):
        if high - low <= 1:
            break
        middle = (low + high) // 2
        tried = _masked(graph, chosen, float(magnitudes[middle - 1]))
        now = loss(tried)
        if now <= bound:
            low, best, reached = middle, tried, now
        else:
            high = middle
    kept = sum(int(best.weights[name].count_nonzero()) for name in chosen)
    value = float(magnitudes[low - 1]) if low else 0.0
    return best, Threshold(value, reached, kept, len(magnitudes))


def _masked(graph: Graph, names: Iterable[str], threshold: float) -> Graph:
    result = graph.clone()
    for name in names:
        weight = result.weights[name].detach()
        result.weights[name] = torch.where(weight.abs() > threshold, weight, 0.0)
    return result


class Mask(nn.Module):
    """The parametrization of a weight whose noughts stay noughts."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", weight.detach() != 0)
        self.kept: Tensor

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.kept


def masked_trainable(graph: Graph, names: Iterable[str]) -> Trainable:
    """A Trainable that trains what is not nought of the named weights, and all other weights."""
    module = Trainable(graph)
    for name in names:
        weight = module.weight(name)
        module.parametrize(name, Mask(weight))
    return module
