"""Quantization-aware training: the float weights of a quantized graph learn while they are rounded.

Weights, step sizes and biases are trained through graphc.training.fake_quantization (LSQ, Esser et al., ICLR 2020),
from labels, from the float graph's logits, or from both:

    loss = (1 - alpha) * cross_entropy(y, label) + alpha * T^2 * KL(softmax(y_float / T) || softmax(y / T))

(Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from graphc.errors import TrainingError
from graphc.graph import Graph
from graphc.progress import Progress, silent
from graphc.training.fake_quantization import FakeQuantized
from graphc.training.loop import Batch, Training, train


@dataclass(frozen=True)
class Distillation:
    """alpha: weight of the float graph's logits; 1 needs no labels, 0 no float graph. temperature: of the softmaxes."""

    alpha: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise TrainingError(f"alpha={self.alpha} must be between 0 (labels only) and 1 (the float graph only)")
        if not self.temperature > 0:
            raise TrainingError(f"temperature={self.temperature} must be positive")


def train_quantized(
    original: Graph,
    quantized: Graph,
    batches: Callable[[int], Batch],
    training: Training,
    distillation: Distillation | None = None,
    metric: Callable[[Graph], float] | None = None,
    progress: Progress = silent,
) -> Graph:
    """The quantized graph with trained integers, step sizes and biases, in the same integer arithmetic.

    quantized: what `quantize` or `reconstruct` made of `original`. batches: step -> the graph's flat inputs, then int64
    labels [N] where alpha < 1. The graph's first result is the logits, f32 [..., classes]. metric: of the graph as it
    would be stored, shown as progress. With a checkpoint in `training`, a killed run goes on to the same result. Raises
    TrainingError for batches of other lengths, and what `graphc.training.loop.train` raises.
    """
    options = distillation or Distillation()
    model = FakeQuantized(original, quantized)
    model.train()
    count = len(quantized.placeholders)
    labelled = options.alpha < 1

    def loss(batch: Batch) -> Tensor:
        if len(batch) < count + labelled:
            what = f"{count} inputs" + (" and labels" if labelled else "")
            raise TrainingError(f"a batch has {len(batch)} tensors, training takes {what}; alpha=1 needs no labels")
        inputs = list(batch[:count])
        logits = model(inputs)[0]
        total = torch.zeros(())
        if labelled:
            total = total + (1 - options.alpha) * F.cross_entropy(logits.flatten(0, -2), batch[count].flatten())
        if options.alpha:
            with torch.no_grad():
                expected = original.run_flat(inputs)[0]
            total = total + options.alpha * _divergence(logits, expected, options.temperature)
        return total

    shown = None if metric is None else lambda: metric(model.graph())
    train(model, loss, batches, training, shown, progress)
    return model.graph()


def _divergence(logits: Tensor, expected: Tensor, temperature: float) -> Tensor:
    """KL(expected || logits), the mean over all but the last dimension, times the square of the temperature."""
    log_p, log_q = (F.log_softmax(value.flatten(0, -2) / temperature, -1) for value in (expected, logits))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2
