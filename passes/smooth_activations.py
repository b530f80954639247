"""Move the spread of activations into the weights of the linear layers that read them; the function stays.

    x W^T = (x / s) (W * s)^T     s_j = max|x_j|^alpha / max|W_j|^(1 - alpha) for each input channel j

(Xiao et al., "SmoothQuant", ICML 2023, equation 4; over all layers that read x). The division goes into stored
parameters that x is made of where it can (graphc.channel_scales), else it is a product.

before:
graph example((%x,), {}) {
  %w = weight "w" #0000000000000000 : f32[4, 8]
  %x = input : f32[2, 8]
  %y = aten.linear.default(%x, %w, None) : f32[2, 4]
  return %y
}
after:
graph example((%x,), {}) {
  %x = input : f32[2, 8]
  %x_smoothing = weight "x.smoothing" #0000000000000000 : f32[8]
  %mul_tensor = aten.mul.Tensor(%x, %x_smoothing) : f32[2, 8]
  %w_smoothed = weight "w.smoothed" #0000000000000000 : f32[4, 8]
  %y = aten.linear.default(%mul_tensor, %w_smoothed, None) : f32[2, 4]
  return %y
}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphc.calibration import fitting_threads
from graphc.channel_scales import Fold, fold, linear_readers, multiply
from graphc.errors import CalibrationError, PassError
from graphc.graph import Graph
from graphc.pipeline import Pass, PassContext

aten = torch.ops.aten
_SETTLED = 0.01  # scales that are all this near to 1 are left


@dataclass(frozen=True)
class SmoothActivations(Pass):
    """Smooth what linear layers with stored weights read, from `ctx.calibration`. alpha: how much of the spread moves,
    from 0 (that of the weights moves into the activations) to 1."""

    alpha: float = 0.5

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        if not 0 <= self.alpha <= 1:
            raise PassError(f"smooth_activations: alpha={self.alpha} must be between 0 and 1")
        result = graph.clone()
        readers = linear_readers(result)
        if not readers:
            return graph
        if not ctx.calibration:
            raise CalibrationError(
                "smooth_activations needs calibration data: graphc.compile(..., calibration=batches)"
            )
        largest = _largest(result, set(readers), ctx)
        # The last first: dividing the rows of a weight must come before its columns are judged.
        pairs = reversed(readers.items())
        changed = [value for value, layers in pairs if self._smooth(result, value, layers, largest[value])]
        if not changed:
            return graph
        result.drop_unused()
        return result

    def _smooth(self, graph: Graph, value: fx.Node, layers: list[fx.Node], largest: Tensor) -> bool:
        weights = torch.stack([graph.weights[str(layer.args[1].target)].abs().amax(0) for layer in layers])  # type: ignore[union-attr]
        range_x, range_w = largest.double(), weights.amax(0).double()
        alive = (range_x > 0) & (range_w > 0)
        one = torch.ones_like(range_x)
        scale = range_x.where(alive, one) ** self.alpha / range_w.where(alive, one) ** (1 - self.alpha)
        scale = torch.where(alive, scale, 1.0)
        into = fold(graph, value, layers)
        if isinstance(into, Fold):
            scale = into.tied(scale)
        scale = scale.to(torch.float32)
        if bool(((scale - 1).abs() <= _SETTLED).all()):
            return False
        if isinstance(into, Fold):
            into.divide(graph, scale, "smoothed")
        else:
            with graph.at(layers[0]):
                product = graph.call(aten.mul.Tensor, value, graph.add_weight(f"{value.name}.smoothing", 1 / scale))
            for layer in layers:
                layer.replace_input_with(value, product)
        multiply(graph, layers, scale, "smoothed")
        return True


def _largest(graph: Graph, values: set[fx.Node], ctx: PassContext) -> dict[fx.Node, Tensor]:
    """max|x| of each channel of the last dimension, over all batches."""
    found: dict[fx.Node, Tensor] = {}

    def see(node: fx.Node, value: Tensor) -> None:
        if node in values:
            if not value.isfinite().all():
                raise CalibrationError(f"%{node.name} of layer '{node.meta['path']}' is NaN or infinite")
            seen = value.detach().abs().reshape(-1, value.shape[-1]).amax(0)
            found[node] = torch.maximum(found[node], seen) if node in found else seen

    with fitting_threads(graph), torch.no_grad():
        for number, batch in enumerate(ctx.calibration):
            for node, leaf in zip(graph.placeholders, batch, strict=True):
                see(node, leaf)
            graph.run_flat(batch, see)
            ctx.progress("smoothing", number + 1, len(ctx.calibration))
    return found
