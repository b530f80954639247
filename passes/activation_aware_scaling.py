"""Scale weights up where activations are large, before they are rounded, and the activations down; the function stays.

    x W^T = (x / s) (W * s)^T     s_j = |x_j|^a / |W_j|^(1 - a) for each input channel j, root mean squares

The a of the grid whose rounded weights lose least in the layers' outputs is taken, tr(E G E^T) with E = Q(W * s) / s - W
(Lin et al., "AWQ", MLSys 2024, section 3.2, with the weights in the scale as its later implementations have them). The
division goes into stored parameters that x is made of (graphc.channel_scales). Where it cannot, nothing is scaled: a
product at run time would take back what few bits save. Compress with the same format afterwards.

before:
graph example((%x,), {}) {
  %g = weight "g" #0000000000000000 : f32[16]
  %w = weight "w" #0000000000000000 : f32[4, 16]
  %x = input : f32[2, 16]
  %n = aten.mul.Tensor(%x, %g) : f32[2, 16]
  %y = aten.linear.default(%n, %w, None) : f32[2, 4]
  return %y
}
after:
graph example((%x,), {}) {
  %x = input : f32[2, 16]
  %g_scaled = weight "g.scaled" #0000000000000000 : f32[16]
  %n = aten.mul.Tensor(%x, %g_scaled) : f32[2, 16]
  %w_scaled = weight "w.scaled" #0000000000000000 : f32[4, 16]
  %y = aten.linear.default(%n, %w_scaled, None) : f32[2, 4]
  return %y
}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, fx

from graphc import formats
from graphc.channel_scales import Fold, fold, linear_readers, multiply, users
from graphc.errors import FormatError, PassError
from graphc.formats import Format
from graphc.graph import Graph
from graphc.moments import loss, second_moments
from graphc.pipeline import Pass, PassContext

_WORTHWHILE = 0.99  # of the loss without scales: what is no better than this is rounding, and nothing is scaled


@dataclass(frozen=True)
class ActivationAwareScaling(Pass):
    """Scale the linear layers whose path matches `layers` and none of `exclude`, where all that read their input do.

    format: in which they will be stored, encoded with the moments of `ctx.calibration`. steps: of the grid of a, from 0
    to 1. Layers whose shape does not fit the format stay; `reasons` says why others do.
    """

    format: str = "linear(bits=4)"
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    steps: int = 20

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        if self.steps < 1:
            raise PassError(f"activation_aware_scaling: steps={self.steps} must be a number from 1")
        chosen = formats.parse(self.format)
        result = graph.clone()
        found = [(value, each) for value, each in self._folds(result).items() if isinstance(each, Fold)]
        if not found:
            return graph
        readers = linear_readers(result)
        moments = second_moments(result, [readers[value][0] for value, _ in found], ctx)
        changed = False
        # The last first: dividing the rows of a weight must come before its columns are judged.
        for number, (value, into) in enumerate(reversed(found)):
            ctx.progress("scaling", number, len(found))
            layers = readers[value]
            scale = self._best(_weights(result, layers), moments[layers[0]], into, chosen)
            if scale is not None:
                into.divide(result, scale, "scaled")
                multiply(result, layers, scale, "scaled")
                changed = True
        if not changed:
            return graph
        result.drop_unused()
        return result

    def reasons(self, graph: Graph) -> dict[str, str]:
        """By path, why a layer is not scaled."""
        readers = linear_readers(graph)
        kept = {value: each for value, each in self._folds(graph).items() if isinstance(each, str)}
        return {layer.meta["path"]: reason for value, reason in kept.items() for layer in readers[value]}

    def _folds(self, graph: Graph) -> dict[fx.Node, Fold | str]:
        found: dict[fx.Node, Fold | str] = {}
        for value, layers in linear_readers(graph).items():
            paths = [layer.meta["path"] for layer in layers]
            wanted = not self.layers or all(any(fnmatch(path, p) for p in self.layers) for path in paths)
            if not wanted or any(fnmatch(path, p) for path in paths for p in self.exclude):
                continue
            shared = [layer for layer in layers if len(users(graph, layer.args[1])) > 1]
            if shared:
                found[value] = f"its weight is read by {users(graph, shared[0].args[1])[0].name} too"
            else:
                found[value] = fold(graph, value, layers)
        return found

    def _best(self, weights: Sequence[Tensor], moments: Tensor, into: Fold, chosen: Format) -> Tensor | None:
        """The scales of least loss, f32 [columns]; None where none is worthwhile or the format does not fit."""
        x = moments.diagonal().clamp(min=0).sqrt()
        w = torch.cat(list(weights)).to(torch.float64).square().mean(0).sqrt()
        alive = (x > 0) & (w > 0)
        x, w = x.where(alive, torch.ones_like(x)), w.where(alive, torch.ones_like(w))
        chosen = chosen.fitted(weights)
        best, found = float("inf"), None
        try:
            plain = _lost(weights, moments, torch.ones(len(x)), chosen)
            for step in range(self.steps + 1):
                a = step / self.steps
                scale = into.tied(x**a / w ** (1 - a))
                scale = (scale / (scale.max() * scale.min()).sqrt()).to(torch.float32)
                lost = _lost(weights, moments, scale, chosen)
                if lost < best:
                    best, found = lost, scale
        except FormatError:
            return None
        return found if best < _WORTHWHILE * plain else None


def _weights(graph: Graph, layers: Sequence[fx.Node]) -> list[Tensor]:
    return [graph.weights[str(layer.args[1].target)].detach() for layer in layers]  # type: ignore[union-attr]


def _lost(weights: Sequence[Tensor], moments: Tensor, scale: Tensor, chosen: Format) -> float:
    """What the outputs lose where the scaled weights are stored."""
    scaled = moments / torch.outer(scale, scale)
    total = 0.0
    for weight in weights:
        decoded = chosen.decode(chosen.encode(weight * scale, scaled), (weight.shape[0], weight.shape[1]))
        total += loss(decoded / scale - weight, moments)
    return total
