"""Columns settled one after the other, each error made good by the columns that are still free.

With the optimal-brain-surgeon update: once column j of W has become w', the others take up what is left of its error,

    W[:, k] -= (w - w') / R[j, j] * R[j, k]   for k > j,    G^-1 = R^T R, R upper triangular

GPTQ (Frantar et al., ICLR 2023) settles a column by rounding it, SparseGPT (Frantar & Alistarh, ICML 2023) by dropping
some of its weights. Columns are taken in blocks, whose effect on later blocks is one product (GPTQ, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

BLOCK = 128
DAMPING = 0.01

# settle(w [rows, n], columns [n], factor [n, n]) -> final(i, w[:, i] as it is then): what column i becomes. `factor` is
# R's part for these columns: an error e in column i costs (e / R[i, i])^2 once the later columns have made up for it,
# and errors e [n] in all of them |e R^-1|^2 once those after them have.
Final = Callable[[int, Tensor], Tensor]
Settle = Callable[[Tensor, Tensor, Tensor], Final]

# By moments, as long as these are there: the factor takes longer than the columns, and is one for all formats.
_FACTORS: MutableMapping[Tensor, dict[tuple[float, bool], tuple[Tensor, Tensor]]] = WeakTensorKeyDictionary()


def damped(moments: Tensor, damping: float = DAMPING) -> Tensor:
    """G + damping * (mean of its diagonal) * I, f64: positive definite even where inputs are always nought."""
    wide = moments.to(torch.float64)
    size = float(wide.diagonal().mean()) or 1.0
    return wide + damping * size * torch.eye(len(wide), dtype=torch.float64)


def upper_factor(matrix: Tensor) -> Tensor:
    """U, upper triangular, with matrix = U U^T."""
    factor: Tensor = torch.linalg.cholesky(matrix.flip(0, 1)).flip(0, 1)
    return factor


def _factored(moments: Tensor, damping: float, sort: bool) -> tuple[Tensor, Tensor]:
    """The order of the columns, and R of G with its columns and rows so: f32 [columns, columns]."""
    known = _FACTORS.setdefault(moments, {})
    if (damping, sort) not in known:
        places = torch.arange(len(moments))
        if sort:
            places = moments.diagonal().argsort(descending=True, stable=True)
        upper = upper_factor(damped(moments, damping)[places][:, places])
        identity = torch.eye(len(moments), dtype=torch.float64)
        known[damping, sort] = places, torch.linalg.solve_triangular(upper, identity, upper=True).to(torch.float32)
    return known[damping, sort]


def compensated(
    weight: Tensor, moments: Tensor, settle: Settle, step: int = BLOCK, damping: float = DAMPING, sort: bool = False
) -> Tensor:
    """The settled weight, f32 [rows, columns].

    settle: is shown `step` columns at a time, as the columns before have left them; `step` divides BLOCK. sort: take
    the columns of largest inputs first (GPTQ's act-order).
    """
    columns = weight.shape[1]
    places, factor = _factored(moments, damping, sort)
    w = weight.to(torch.float32)[:, places].clone()
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block, errors = w[:, start:stop], torch.zeros(len(w), stop - start)
        final: Final | None = None
        for i in range(stop - start):
            if final is None or i % step == 0:
                first, here = i, slice(start + i, min(start + i + step, stop))
                final = settle(w[:, here], places[here], factor[here, here])
            settled = final(i - first, block[:, i])
            errors[:, i] = (block[:, i] - settled) / factor[start + i, start + i]
            block[:, i + 1 :] -= torch.outer(errors[:, i], factor[start + i, start + i + 1 : stop])
            block[:, i] = settled
        w[:, stop:] -= errors @ factor[start:stop, stop:]
    return w[:, places.argsort()]
