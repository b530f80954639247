"""HQQ: scales and zero points that are right for most weights, whatever the outliers; no data is needed.

    min over scale, zero of  sum |w - (q - zero) * scale|^p,  p = 0.7

split into half-quadratic steps with an auxiliary error e (Badri & Shaji, "Half-Quadratic Quantization of Large Machine
Learning Models", 2023): e shrinks the error, the zero point is the mean of q - (w / scale - e). Beside the paper, whose
zero points are real numbers and whose scales stay: zero points are stored as integers, and the scale is fitted too, as
the quotient of least squares. Errors are in steps of the scale, so that the weight's size does not matter.
"""

from __future__ import annotations

import torch
from torch import Tensor

from graphc.encoding.grid import Grid

POWER, STIFFNESS, GROWTH, ROUNDS = 0.7, 10.0, 1.05, 20


def refined(grouped: Tensor, grid: Grid, dtype: torch.dtype, moving: bool, over: tuple[int, ...]) -> Grid:
    """The best grid of ROUNDS, for each group. grouped: f32 [rows, groups, group]; dtype: that scales are rounded to;
    moving: whether zero points may change; over: the dimensions of a group."""
    best, least = grid, cost(grouped, grid, over)
    stiffness = STIFFNESS
    for _ in range(ROUNDS):
        codes = grid.codes(grouped)
        apart = grouped / grid.divisor - (codes - grid.zero)
        size = apart.abs().clamp(min=1e-9)
        outlying = apart.sign() * (size - size ** (POWER - 1) / stiffness).clamp(min=0)
        zero = grid.zero
        if moving:
            zero = (codes - grouped / grid.divisor + outlying).mean(over, keepdim=True).round().clamp(0, grid.top)
        steps = codes - zero
        fitted = ((grouped - outlying * grid.scale) * steps).sum(over, keepdim=True)
        scale = fitted / steps.square().sum(over, keepdim=True).clamp(min=1e-20)
        grid = Grid(torch.where(scale == 0, grid.scale, scale).to(dtype).to(torch.float32), zero, grid.top)
        error = cost(grouped, grid, over)
        better = error < least
        best = Grid(torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero), grid.top)
        least = torch.where(better, error, least)
        stiffness *= GROWTH
    return best


def cost(grouped: Tensor, grid: Grid, over: tuple[int, ...]) -> Tensor:
    """sum |error|^p of each group."""
    return (grid.decode(grid.codes(grouped)) - grouped).abs().pow(POWER).sum(over, keepdim=True)
