"""The values that integers with scales can take, and the ranges that they span."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RATIOS = tuple(1 - step / 40 for step in range(29))  # of the largest value: from all of it to 30 %
_HELD = 1 << 17  # weights at once: what a cache holds


@dataclass(frozen=True)
class Grid:
    """w = (q - zero) * scale for q from 0 to `top`; scale and zero, f32, broadcast to the weights."""

    scale: Tensor
    zero: Tensor
    top: int

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest q of each weight, f32."""
        return ((weight / self.divisor).round() + self.zero).clamp(0, self.top)

    def decode(self, codes: Tensor) -> Tensor:
        return (codes - self.zero) * self.scale

    @property
    def divisor(self) -> Tensor:
        """The scale, but infinite where that is nought: all weights of such a group are nought."""
        return torch.where(self.scale == 0, torch.inf, self.scale)

    def expanded(self, shape: torch.Size) -> Grid:
        """For a matrix: scale and zero of every element, from those of groups [rows, groups, group]."""
        return Grid(self.scale.expand(shape).flatten(1), self.zero.expand(shape).flatten(1), self.top)


def clipped(grouped: Tensor, grid: Grid, dtype: torch.dtype, weights: Tensor, over: tuple[int, ...]) -> Grid:
    """The grid whose scales, times one of RATIOS and rounded to `dtype`, have the least squared error in each group.

    Few bits spend their values better where outliers are clipped. grouped: [rows, groups, group]; weights: of the
    squared errors, broadcasts to it; over: the dimensions of a group.
    """
    rows = max(1, _HELD // grouped[0].numel())
    if 0 not in over and rows < len(grouped):
        parts = (
            clipped(each, Grid(scale, zero, grid.top), dtype, weights, over).scale
            for each, scale, zero in zip(*(t.split(rows) for t in (grouped, grid.scale, grid.zero)), strict=True)
        )
        return Grid(torch.cat(list(parts)), grid.zero, grid.top)
    best, least = grid, torch.full_like(grid.scale, torch.inf)
    for ratio in RATIOS:
        tried = Grid((grid.scale * ratio).to(dtype).to(torch.float32), grid.zero, grid.top)
        error = (weights * (tried.decode(tried.codes(grouped)) - grouped).square()).sum(over, keepdim=True)
        better = error < least
        best = Grid(torch.where(better, tried.scale, best.scale), grid.zero, grid.top)
        least = torch.where(better, error, least)
    return best
