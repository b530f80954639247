"""Quantization-aware training: the float weights of a quantized graph learn while they are rounded.

Weights, step sizes and biases are trained through graphc.training.fake_quantization (LSQ, Esser et al., ICLR 2020)
towards labels, the float graph, or both: the loss is that of graphc.training.distillation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from graphc.graph import Graph
from graphc.progress import Progress, silent
from graphc.training.distillation import Distillation, DistillationLoss
from graphc.training.fake_quantization import FakeQuantized
from graphc.training.loop import Batch, Training, train


def train_quantized(
    original: Graph,
    quantized: Graph,
    batches: Callable[[int], Batch],
    training: Training | Sequence[Training],
    distillation: Distillation | None = None,
    metric: Callable[[Graph], float] | None = None,
    progress: Progress = silent,
    precision: torch.dtype = torch.float32,
) -> Graph:
    """The quantized graph with trained integers, step sizes and biases, in the same integer arithmetic.

    quantized: what `quantize` or `reconstruct` made of `original`, which also is the teacher. batches: step -> the
    graph's flat inputs, then labels where `distillation` weighs them. training: one, or several that follow each other,
    each with a schedule of its own (warm restarts, Loshchilov & Hutter, "SGDR", ICLR 2017); batches count on. metric:
    of the graph as it would be stored, shown as progress. precision: of the values between layers while training, f32
    or bfloat16; the latter takes less time where the processor multiplies it. With checkpoints in `training`, a killed
    run goes on to the same result. Raises TrainingError for batches of other lengths, and what
    `graphc.training.loop.train` raises.

    >>> trained = train_quantized(original, Quantize(4, 4).run(original, ctx), samples, Training(1000, 1e-3))
    """
    model = FakeQuantized(original, quantized, precision=precision)
    loss = DistillationLoss(model, original, distillation or Distillation())
    shown = None if metric is None else lambda: metric(model.graph())
    done = 0
    for phase in [training] if isinstance(training, Training) else training:
        train(model, loss, lambda step, before=done: batches(before + step), phase, shown, progress)  # type: ignore[misc]
        done += phase.steps
    return model.graph()
