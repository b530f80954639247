"""What compressing each layer would save and cost: the numbers that an assignment chooses by.

items         the layers that one choice is made for
candidates    each item in each format: the weights that it would have, and their bytes
cost          multiply-accumulates, bytes and roofline time of each candidate
outputs       signal-to-noise ratio and divergence of the model's outputs with one item replaced
gradients     Taylor and Fisher scores: one backward pass for all formats
hessian       traces of the Hessian
drops         what the user's metric loses with one item replaced

All work on the clean float graph (after `CLEAN`), as jobs over `ctx.executor`. SENSITIVITIES gives each as one number a
candidate, higher is worse, so that an assignment can be made by any of them.
"""

from __future__ import annotations

from collections.abc import Callable

from graphc.analysis import drops, gradients, hessian, outputs
from graphc.analysis.candidates import Candidates, Key
from graphc.graph import Graph
from graphc.pipeline import PassContext

Losses = dict[Key, float]

SENSITIVITIES: dict[str, Callable[[Graph, Candidates, PassContext], Losses]] = {
    "kl": lambda graph, found, ctx: {key: row.kl for key, row in outputs.changes(graph, found, ctx).items()},
    "noise": lambda graph, found, ctx: {key: row.noise for key, row in outputs.changes(graph, found, ctx).items()},
    "fisher": lambda graph, found, ctx: {key: row.fisher for key, row in gradients.scores(graph, found, ctx).items()},
    "taylor": lambda graph, found, ctx: {key: row.taylor for key, row in gradients.scores(graph, found, ctx).items()},
    "hessian": hessian.scores,
    "metric": drops.metric_drops,
}
