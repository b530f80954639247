"""AdaRound: round each weight up or down, whichever makes the layer's output lose least.

    min over v of  tr(E G E^T) + lambda * sum(1 - |2 h(v) - 1|^beta),    q = floor(w / scale) + h(v)

h is a rectified sigmoid and beta falls, so that every h ends at 0 or 1 (Nagel et al., "Up or Down? Adaptive Rounding
for Post-Training Quantization", ICML 2020, equations 21 to 25). The layer's inputs enter by their second moments
alone, which hold all that the quadratic loss of a linear layer depends on.

Where inputs are strongly correlated, gradients find the broad picture only. So the codes are then improved one column
at a time, given all others (coordinate descent: Behdin et al., "QuantEase", 2023), still between up and down.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphc.encoding.compensation import damped
from graphc.encoding.grid import Grid

_LOW, _HIGH = -0.1, 1.1  # where the sigmoid is stretched to, before it is cut to 0 to 1
_RATE, _WEIGHT, _WARMING = 0.1, 0.1, 0.2
_STEEP, _FLAT = 20.0, 2.0  # beta at the start and at the end
_SWEEPS = 3  # of coordinate descent


def adaptive_codes(weight: Tensor, moments: Tensor, grid: Grid, iterations: int) -> Tensor:
    """Codes f32 [rows, columns], next to each weight on its grid (that of every element). No row loses more than with
    rounding to nearest, which stays where nothing better was found."""
    low = (weight / grid.divisor).floor() + grid.zero
    form = damped(moments, 1e-6).to(torch.float32)  # no nought to divide by
    nearest = grid.codes(weight)
    found = _descended(weight, form, grid, _annealed(weight, form, grid, low, nearest, iterations), low)
    lost = [((error @ form) * error).sum(1, True) for error in (weight - grid.decode(c) for c in (found, nearest))]
    return torch.where(lost[0] < lost[1], found, nearest)


def _annealed(weight: Tensor, form: Tensor, grid: Grid, low: Tensor, nearest: Tensor, iterations: int) -> Tensor:
    error = weight - grid.decode(nearest)
    # An average loss of 1 for each weight, as rounding to nearest has it: lambda then means the same for every layer.
    form = form * (error.numel() / max(float(((error @ form) * error).sum()), 1e-30))
    part = (weight / grid.divisor + grid.zero - low).clamp(0.01, 0.99)
    v = -((_HIGH - _LOW) / (part - _LOW) - 1).log()
    optimizer = torch.optim.Adam([v], lr=_RATE)
    for step in range(iterations):
        sigmoid = v.sigmoid()
        h = (sigmoid * (_HIGH - _LOW) + _LOW).clamp(0, 1)
        codes = low + h
        inside = (h > 0) & (h < 1) & (codes >= 0) & (codes <= grid.top)
        slope = -2 * grid.scale * ((weight - grid.decode(codes.clamp(0, grid.top))) @ form)
        done = (step / iterations - _WARMING) / (1 - _WARMING)
        if done > 0:
            beta = _STEEP + (_FLAT - _STEEP) * done
            apart = 2 * h - 1
            slope -= _WEIGHT * 2 * beta * apart.sign() * apart.abs() ** (beta - 1)
        v.grad = slope * inside * (_HIGH - _LOW) * sigmoid * (1 - sigmoid)
        optimizer.step()
    return (low + (v.sigmoid() * (_HIGH - _LOW) + _LOW >= 0.5)).clamp(0, grid.top)


def _descended(weight: Tensor, form: Tensor, grid: Grid, codes: Tensor, low: Tensor) -> Tensor:
    error = weight - grid.decode(codes)
    slope = error @ form
    for _ in range(_SWEEPS):
        for j in range(weight.shape[1]):
            wanted = weight[:, j] - error[:, j] + slope[:, j] / form[j, j]
            code = (wanted / grid.divisor[:, j] + grid.zero[:, j]).round()
            code = code.clamp(low[:, j], low[:, j] + 1).clamp(0, grid.top)
            change = (codes[:, j] - code) * grid.scale[:, j]
            codes[:, j] = code
            error[:, j] += change
            slope += torch.outer(change, form[j])
    return codes
