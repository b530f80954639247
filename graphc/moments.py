"""Second moments of what layers read: how much each direction of a weight's error matters.

    G = mean over all input vectors x of x x^T,    so that  mean |E x|^2 = tr(E G E^T)

for an error E [rows, columns] of the weight matrix. A linear layer's x are the last dimension of its input. Those of a
convolution are the patches under its kernel, in the order of a row of its weight, [C / groups * taps]; a grouped
convolution has one G, the mean of its groups', since a format sees one matrix. A transposed convolution multiplies by
columns of its weight matrix, for which this form of the error does not hold: it has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from graphc.calibration import fitting_threads
from graphc.errors import CalibrationError
from graphc.graph import Graph, arguments
from graphc.pipeline import PassContext

aten = torch.ops.aten

_ELEMENTS = 1 << 24  # of patches that are held at once


@dataclass(frozen=True)
class _Reading:
    """How vectors are taken from an input: whole rows where `kernel` is None, else patches."""

    source: fx.Node
    kernel: tuple[int, ...] | None = None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    @staticmethod
    def of(layer: fx.Node) -> _Reading | None:
        if layer.target is aten.linear.default:
            return _Reading(layer.all_input_nodes[0])
        if layer.target is not aten.convolution.default:
            return None
        source, weight, _, stride, padding, dilation, transposed, _, groups = arguments(layer)
        kernel = weight.meta["type"].shape[2:]
        steps, ends, apart = (_spread(value, len(kernel)) for value in (stride, padding, dilation))
        return None if transposed else _Reading(source, tuple(kernel), steps, ends, apart, groups)

    def vectors(self, x: Tensor) -> Iterator[Tensor]:
        """f32 [count, columns], a part of the input at a time."""
        if self.kernel is None:
            yield from x.reshape(-1, x.shape[-1]).split(max(1, _ELEMENTS // x.shape[-1]))
            return
        rank = len(self.kernel)
        for image in x if x.dim() == rank + 2 else x.unsqueeze(0):
            ends = [side for size in reversed(self.padding) for side in (size, size)]
            patches = torch.nn.functional.pad(image, ends)
            for axis, (taps, stride, dilation) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
                patches = patches.unfold(axis + 1, dilation * (taps - 1) + 1, stride)[..., ::dilation]
            # [groups, C / groups, places..., taps...] -> [groups, places..., C / groups, taps...]
            patches = patches.unflatten(0, (self.groups, -1)).movedim(1, rank + 1)
            columns = patches.shape[rank + 1 :].numel()
            for part in patches.flatten(1, rank).split(max(1, _ELEMENTS // (columns * self.groups)), 1):
                yield part.reshape(-1, columns)


class _Mean:
    """The mean of x x^T over vectors x. They wait until there are as many as they have elements: fewer would make less
    work than adding up their product does."""

    def __init__(self, layer: str) -> None:
        self._layer, self._waiting, self._rows, self._count = layer, list[Tensor](), 0, 0
        self._sum = torch.zeros((), dtype=torch.float64)

    def add(self, vectors: Tensor) -> None:
        self._waiting.append(vectors)
        self._rows += len(vectors)
        if self._rows >= min(vectors.shape[1], _ELEMENTS // vectors.shape[1]):
            self._take()

    def value(self) -> Tensor:
        """f64 [columns, columns]."""
        self._take()
        return self._sum / self._count

    def _take(self) -> None:
        if not self._waiting:
            return
        vectors = torch.cat(self._waiting)
        product = vectors.t() @ vectors
        if not product.isfinite().all():
            raise CalibrationError(f"the input of layer '{self._layer}' is NaN or infinite on the calibration data")
        self._sum, self._count = self._sum + product.to(torch.float64), self._count + len(vectors)
        self._waiting, self._rows = [], 0


def second_moments(graph: Graph, layers: Iterable[fx.Node], ctx: PassContext) -> dict[fx.Node, Tensor]:
    """G of each layer's input over `ctx.calibration`, f64 [columns, columns], in one run of the graph.

    layers: aten.linear and aten.convolution nodes of `graph`; those without G (transposed ones) are left out. Products
    are taken in f32 and summed in f64. Raises CalibrationError without data, or where an input is NaN or infinite.
    """
    if not ctx.calibration:
        raise CalibrationError("second moments need calibration data: graphc.compile(..., calibration=batches)")
    readings = {layer: reading for layer in layers if (reading := _Reading.of(layer)) is not None}
    readers: dict[fx.Node, dict[_Reading, _Mean]] = {}
    for layer, reading in readings.items():
        readers.setdefault(reading.source, {}).setdefault(reading, _Mean(layer.meta["path"] or layer.name))

    def see(node: fx.Node, value: Any) -> None:
        for reading, mean in readers.get(node, {}).items():
            for vectors in reading.vectors(value.detach().to(torch.float32)):
                mean.add(vectors)

    with fitting_threads(graph), torch.no_grad():
        for number, batch in enumerate(ctx.calibration):
            for node, given in zip(graph.placeholders, batch, strict=True):
                see(node, given)
            for node in readers:
                if (stored := graph.weight(node)) is not None:
                    see(node, stored)
            graph.run_flat(batch, see)
            ctx.progress("measuring inputs of layers", number + 1, len(ctx.calibration))
    means = {reading: mean.value() for found in readers.values() for reading, mean in found.items()}
    return {layer: means[reading] for layer, reading in readings.items()}


def loss(error: Tensor, moments: Tensor | None) -> float:
    """tr(E G E^T), the mean squared error that E [rows, columns] makes in a layer's output; |E|^2 without moments."""
    wide = error.to(torch.float64)
    return float(wide.square().sum() if moments is None else ((wide @ moments.to(torch.float64)) * wide).sum())


def _spread(value: Any, rank: int) -> tuple[int, ...]:
    """One number for each dimension: a list of one stands for all."""
    return tuple(value) if len(value) == rank else tuple(value) * rank
