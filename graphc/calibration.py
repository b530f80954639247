"""Ranges of activations from calibration data: which real interval the integers shall span."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import sympy
import torch
from torch import Tensor

from graphc.cost import macs
from graphc.errors import CalibrationError, InputError
from graphc.graph import Graph
from graphc.tensor_type import TensorType

Method = Literal["minmax", "percentile", "mse", "entropy"]
BINS = 2048
_SMALL = 200_000_000  # multiply-accumulates of one run


@dataclass
class Observer:
    """Range first, then a histogram over that range."""

    low: float = float("inf")
    high: float = float("-inf")
    counts: Tensor | None = None

    def see_range(self, value: Tensor) -> None:
        self.low = min(self.low, float(value.min()))
        self.high = max(self.high, float(value.max()))

    def see_counts(self, value: Tensor) -> None:
        counts = torch.histc(value.detach().to(torch.float32), BINS, self.low, self.high).to(torch.float64)
        self.counts = counts if self.counts is None else self.counts + counts

    def centres(self) -> Tensor:
        step = (self.high - self.low) / BINS
        return self.low + step * (torch.arange(BINS, dtype=torch.float64) + 0.5)


@contextmanager
def fitting_threads(graph: Graph) -> Iterator[None]:
    """One torch thread while a small graph runs: waking the others for each operator costs more than they save, and on
    a busy machine ten times more."""
    before = torch.get_num_threads()
    small = sum(macs(graph, node) for node in graph.calls) < _SMALL
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interval(observer: Observer, method: Method, levels: int = 256, percentile: float = 99.99) -> tuple[float, float]:
    """The real interval that `levels` integers shall span; it always holds nought.

    minmax: all that was seen. percentile: all but the outermost (100 - percentile) % at each end. mse: the least
    squared error of quantization over clipping ratios. entropy: the least Kullback-Leibler divergence between the
    histogram and its quantized form (Migacz, "8-bit inference with TensorRT", GTC 2017).
    """
    low, high = min(observer.low, 0.0), max(observer.high, 0.0)
    if method == "minmax" or high == low or observer.counts is None or observer.high == observer.low:
        return low, high
    centres, counts = observer.centres(), observer.counts
    if method == "percentile":
        mass = counts.cumsum(0) / counts.sum()
        tail = 1 - percentile / 100
        inside = centres[(mass >= tail) & (mass <= 1 - tail)]
        return (min(float(inside.min()), 0.0), max(float(inside.max()), 0.0)) if inside.numel() else (low, high)
    score = _squared_error if method == "mse" else _divergence
    ratios = [1 - step / 100 for step in range(81)]
    best = min(ratios, key=lambda ratio: score(centres, counts, low * ratio, high * ratio, levels))
    return low * best, high * best


def _squared_error(centres: Tensor, counts: Tensor, low: float, high: float, levels: int) -> float:
    step = (high - low) / (levels - 1)
    zero = round(-low / step)
    q = (torch.round(centres / step) + zero).clamp(0, levels - 1)
    return float((counts * ((q - zero) * step - centres) ** 2).sum())


def _divergence(centres: Tensor, counts: Tensor, low: float, high: float, levels: int) -> float:
    inside = (centres >= low) & (centres <= high)
    if int(inside.sum()) < levels:
        return float("inf")
    clipped = counts[inside].clone()
    clipped[0] += counts[centres < low].sum()
    clipped[-1] += counts[centres > high].sum()
    # Each level spreads its counts evenly over the bins that were not empty.
    level = (torch.arange(clipped.numel()) * levels) // clipped.numel()
    filled = counts[inside] > 0
    totals = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, counts[inside])
    used = torch.zeros(levels, dtype=torch.float64).index_add_(0, level, filled.to(torch.float64))
    spread = torch.where(filled, (totals / used.clamp(min=1))[level], 0.0)
    p, q = clipped / clipped.sum(), spread / spread.sum().clamp(min=1)
    both = (p > 0) & (q > 0)
    missing = float(p[(p > 0) & (q == 0)].sum())
    return float((p[both] * (p[both] / q[both]).log()).sum()) + 10 * missing


def batches(graph: Graph, data: Iterable[Any] | None) -> list[list[Tensor]]:
    """Calibration data as lists of flat inputs of the graph's own shapes.

    An item is one call's inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs. Larger batches
    are cut to the size that the graph was traced with. Raises CalibrationError, with the number of the bad batch, for
    no data, NaN, infinities, or other shapes and dtypes.
    """
    if data is not None and not isinstance(data, Iterable):
        raise CalibrationError(f"the calibration data must be an iterable of batches, not a {type(data).__name__}")
    found: list[list[Tensor]] = []
    for number, item in enumerate(() if data is None else data):
        try:
            leaves = graph.tensors(_leaves(graph, item))
        except InputError as error:
            raise CalibrationError(f"calibration batch {number}: {error}") from None
        for piece in _cut(graph, leaves, number):
            try:
                graph.bind(piece)
            except InputError as error:
                raise CalibrationError(f"calibration batch {number}: {error}") from None
            if any(leaf.is_floating_point() and not bool(leaf.isfinite().all()) for leaf in piece):
                raise CalibrationError(f"calibration batch {number} holds NaN or infinite values")
            found.append(piece)
    if not found:
        raise CalibrationError(
            "the calibration data is empty: give an iterable of batches, such as [x1, x2] or a list (a generator that "
            "was already read gives nothing)"
        )
    return found


def _leaves(graph: Graph, item: Any) -> list[Any]:
    if isinstance(item, dict):
        return graph.inputs.flatten_call((), item)
    args = tuple(item) if isinstance(item, tuple | list) else (item,)
    try:
        return graph.inputs.flatten_call(args, {})
    except InputError:
        # (inputs, label) pairs of a data loader: the labels are of no use here.
        if len(args) < graph.inputs.size:
            raise
        return list(args[: graph.inputs.size])


def _cut(graph: Graph, leaves: Sequence[Tensor], number: int) -> list[list[Tensor]]:
    """A batch in pieces of the first dimension that the graph takes.

    A fixed size fills up the last piece from the start; a dynamic one cuts at its maximum.
    """
    kinds: list[TensorType] = [node.meta["type"] for node in graph.placeholders]
    if len(leaves) != len(kinds):
        raise CalibrationError(f"calibration batch {number} has {len(leaves)} tensors, the model takes {len(kinds)}")
    sizes = {kind.shape[0] for kind in kinds if kind.shape}
    given = {leaf.shape[0] for leaf in leaves if leaf.dim()}
    if len(sizes) != 1 or len(given) != 1:
        return [list(leaves)]
    (size,), (count,) = sizes, given
    if isinstance(size, sympy.Symbol):
        largest = graph.symbols[size.name].maximum
        return [list(piece) for piece in zip(*(leaf.split(largest) for leaf in leaves), strict=True)]
    if not isinstance(size, int) or size == count or size == 0 or count == 0:
        return [list(leaves)]
    places = [torch.arange(start, start + size) % count for start in range(0, count, size)]
    return [[leaf[place] for leaf in leaves] for place in places]
