"""How much of each layer's rounding error a low rank makes good, so that few bytes serve the model best.

    min  sum loss[i, r]   s.t.   sum bytes[i, r] <= size,    W_i ~ base(W_i) + low_rank(r_i)

with the rank of a layer as its format: an integer program over the losses that each rank leaves in each layer, rather
than one rank for all (HCInfer, arXiv 2605.05819, whose rule is not published: sensitivity times what is left, over the
cost). The low rank is that of the whitened error (Zhang et al., "QERA", ICLR 2025; graphc.formats.low_rank).
"""

from __future__ import annotations

from collections.abc import Sequence

from graphc.analysis import SENSITIVITIES
from graphc.analysis.candidates import FLOAT, candidates
from graphc.assignment import Choice, choices
from graphc.assignment.integer_program import integer_program
from graphc.errors import FormatError
from graphc.graph import Graph
from graphc.pipeline import PassContext, Pipeline

RANKS = (0, 1, 2, 4, 8, 16, 32)


def compensation(base: str, rank: int) -> str:
    """The format of weights in `base` whose error is made good by so many directions."""
    return f"{base} + low_rank(rank={rank},factors=int8)" if rank else base


def allocated(
    graph: Graph,
    bases: Sequence[str],
    ctx: PassContext,
    size: int,
    *,
    ranks: Sequence[int] = RANKS,
    sensitivity: str = "fisher",
) -> Pipeline:
    """The passes that compensate each layer by the rank of least loss in all, at `size` bytes of the layers' weights.

    bases: formats; a layer has those that fit its shape, and stays in f32 only where none does. sensitivity: one of
    SENSITIVITIES, measured on `ctx.calibration` with one layer replaced. The same inputs give the same passes. Raises
    BudgetError, with the least that there is, where nothing fits, CalibrationError without data.

    >>> allocated(graph, ["linear(bits=3,group=32)"], ctx, 100_000).run(graph, ctx)
    """
    if sensitivity not in SENSITIVITIES:
        raise FormatError(f"unknown sensitivity '{sensitivity}'; known: {', '.join(SENSITIVITIES)}")
    found = candidates(graph, [compensation(base, rank) for base in bases for rank in ranks], ctx)
    made = choices(found, SENSITIVITIES[sensitivity](graph, found, ctx))
    compressed = [
        Choice(one.item, tuple(option for option in one.options if option.format != FLOAT) or one.options)
        for one in made
    ]
    return Pipeline(integer_program(compressed, size=size).passes)
