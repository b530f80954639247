"""Columns settled one after the other, each error made good by the columns that are still free.

With the optimal-brain-surgeon update: once column j of W has become w', the others take up what is left of its error,

    W[:, k] -= (w - w') / R[j, j] * R[j, k]   for k > j,    G^-1 = R^T R, R upper triangular

GPTQ (Frantar et al., ICLR 2023) settles a column by rounding it, SparseGPT (Frantar & Alistarh, ICML 2023) by dropping
some of its weights. Columns are taken in blocks, whose effect on later blocks is one product (GPTQ, section 3.3).
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from functools import wraps
from typing import TypeVar, TypeVarTuple

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

Result = TypeVar("Result")
Options = TypeVarTuple("Options")


def _kept(function: Callable[[Tensor, *Options], Result]) -> Callable[[Tensor, *Options], Result]:
    """The results of a function of moments, for as long as the moments are there: factoring takes longer than settling
    columns, and serves all formats."""
    known: MutableMapping[Tensor, dict[tuple[*Options], Result]] = WeakTensorKeyDictionary()

    @wraps(function)
    def kept(moments: Tensor, *options: *Options) -> Result:
        results = known.setdefault(moments, {})
        if options not in results:
            results[options] = function(moments, *options)
        return results[options]

    return kept


def damped(moments: Tensor, damping: float = DAMPING) -> Tensor:
    """G + damping * (mean of its diagonal) * I, f64: positive definite even where inputs are always nought."""
    wide = moments.to(torch.float64)
    size = float(wide.diagonal().mean()) or 1.0
    return wide + damping * size * torch.eye(len(wide), dtype=torch.float64)


@_kept
def square_root(moments: Tensor, damping: float) -> Tensor:
    """U, f64 and upper triangular, with U U^T the damped moments: errors E cost |E U|^2."""
    factor: Tensor = torch.linalg.cholesky(damped(moments, damping).flip(0, 1)).flip(0, 1)
    return factor


@_kept
def _factored(moments: Tensor, damping: float, sort: bool) -> tuple[Tensor, Tensor]:
    """The order of the columns, and R of G with its columns and rows so: f32 [columns, columns]."""
    places = torch.arange(len(moments))
    if sort:
        places = moments.diagonal().argsort(descending=True, stable=True)
    upper = square_root(moments[places][:, places] if sort else moments, damping)
    # Damped, the factor is well-conditioned enough to be inverted in f32.
    return places, torch.linalg.solve_triangular(upper.float(), torch.eye(len(upper)), upper=True)


def compensated(
    weight: Tensor, moments: Tensor, settle: Settle, step: int = BLOCK, damping: float = DAMPING, sort: bool = False
) -> Tensor:
    """The settled weight, f32 [rows, columns].

    settle: is shown `step` columns at a time, as the columns before have left them; `step` divides BLOCK. sort: take
    the columns of largest inputs first (GPTQ's act-order).
    """
    columns = weight.shape[1]
    places, factor = _factored(moments, damping, sort)
    rows = weight.to(torch.float32)[:, places].t().contiguous()  # a row for each column: what is settled lies together
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block, own = rows[start:stop], factor[start:stop, start:stop]
        errors = torch.zeros_like(block)
        final: Final | None = None
        for i, column in enumerate(block):
            if final is None or i % step == 0:
                first, here = i, slice(start + i, min(start + i + step, stop))
                final = settle(rows[here].t(), places[here], factor[here, here])
            settled = final(i - first, column)
            errors[i] = (column - settled) / own[i, i]
            column.copy_(settled)
            block[i + 1 :].addr_(own[i, i + 1 :], errors[i], alpha=-1)
        rows[stop:].addmm_(factor[start:stop, stop:].t(), errors, alpha=-1)
    return rows[places.argsort()].t().contiguous()
