"""How far a model's outputs are from the float model's: the Kullback-Leibler divergence of the distributions that a
softmax makes of them, in nats.

The softmax runs over the channels of images [N, C, H, W], else over the last axis. Outputs of one channel, and those
that are no logits, behave as squared errors do: for small differences the divergence is a quadratic form of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def divergence(expected: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
    """KL(softmax(expected) || softmax(given)): the mean over all positions, summed over the floating outputs.

    For outputs of one channel it is the squared error over twice the expected mean square. f32 or f64 [], and
    differentiable as often as one likes.
    """
    total = torch.zeros(())
    for before, after in _floating(expected, given):
        axis = channels(before)
        if axis is None:
            total = total + (after - before).square().mean() / (2 * before.square().mean().clamp(min=1e-20))
            continue
        p, q = before.log_softmax(axis), after.log_softmax(axis)
        total = total + (p.exp() * (p - q)).sum(axis).mean()
    return total


def noise(expected: Sequence[Tensor], given: Sequence[Tensor]) -> float:
    """The power of the difference over the power of the expected outputs: the reciprocal of the signal-to-noise ratio;
    the worst of the floating outputs."""
    ratios = [0.0]
    for before, after in _floating(expected, given):
        signal = float(before.double().square().sum())
        error = float((after.double() - before.double()).square().sum())
        ratio = error / signal if signal else math.inf if error else 0.0
        ratios.append(ratio if math.isfinite(ratio) else math.inf)  # NaN would compare as good
    return max(ratios)


def random_gradients(outputs: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """For each floating output a random vector whose covariance is the Hessian of `divergence` at the outputs.

    For logits it is (softmax(y) - onehot(label)) with a label drawn from the model's own distribution, the gradient of
    whose likelihood this is, over the root of the positions: these are drawn on their own, so that their squares add up
    to the mean.
    """
    found = []
    for output in outputs:
        axis = channels(output)
        if axis is None:
            size = (output.numel() * output.square().mean().clamp(min=1e-20)).sqrt()
            found.append(torch.randn(output.shape, generator=generator) / size)
            continue
        p = output.softmax(axis).movedim(axis, -1)
        labels = torch.multinomial(p.reshape(-1, p.shape[-1]), 1, generator=generator).reshape(p.shape[:-1])
        onehot = torch.nn.functional.one_hot(labels, p.shape[-1])
        positions = max(labels.numel(), 1)
        found.append(((p - onehot) / math.sqrt(positions)).movedim(-1, axis))
    return found


def channels(output: Tensor) -> int | None:
    """The axis of the classes; None where there is no more than one."""
    axis = 1 if output.dim() == 4 else output.dim() - 1
    return axis if axis >= 0 and output.shape[axis] > 1 else None


def _floating(expected: Sequence[Tensor], given: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(a, b) for a, b in zip(expected, given, strict=True) if a.is_floating_point() and a.numel()]
