"""Which weights are kept: by magnitude; by Wanda; by SparseGPT, which makes the others up for what is dropped.

    magnitude   |w|                          by Wanda   |w[n, j]| * sqrt(G[j, j])
    SparseGPT   |w[n, j]| / R[j, j],         G^-1 = R^T R, as the columns before have left w (encoding.compensation)

Wanda: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, equation 1.
SparseGPT: Frantar & Alistarh, ICML 2023, section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from graphc.encoding.compensation import BLOCK, Final, compensated


def largest(scores: Tensor, count: int) -> Tensor:
    """Of each row (the last dimension), a mask of the `count` of largest score; of equal ones the first."""
    order = scores.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, True)


def importance(weight: Tensor, moments: Tensor | None) -> Tensor:
    """Wanda's score, or the magnitude without moments: f32 [rows, columns]."""
    if moments is None:
        return weight.abs()
    return weight.abs() * moments.diagonal().clamp(min=0).sqrt().to(torch.float32)


def pruned(
    weight: Tensor, moments: Tensor, keep: Callable[[Tensor], Tensor], step: int = BLOCK
) -> tuple[Tensor, Tensor]:
    """SparseGPT: the weight f32 [rows, columns] with what is dropped made up for, and the mask of what is kept.

    keep(scores [rows, n]) -> mask, for `step` columns at a time.
    """
    masks = torch.zeros_like(weight, dtype=torch.bool)

    def settle(w: Tensor, columns: Tensor, factor: Tensor) -> Final:
        mask = keep(w.abs() / factor.diagonal())
        masks[:, columns] = mask
        return lambda i, column: torch.where(mask[:, i], column, 0.0)

    return compensated(weight, moments, settle, step), masks
