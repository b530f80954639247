"""Traces of the Hessian of the divergence from the model's own outputs, by Hutchinson's estimator.

    trace H = E[v^T H v],  v of random signs;  H v by differentiating <gradient, v> once more
    score   = 1/2 (trace H / elements) |E|^2       (Dong et al., "HAWQ-V2", NeurIPS 2020, equation 8)

At the float weights the divergence is least, so its Hessian is the Fisher information.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from graphc.analysis.candidates import Candidates, Key
from graphc.analysis.divergence import divergence
from graphc.analysis.gradients import differentiable, plain_attention
from graphc.calibration import fitting_threads
from graphc.errors import CalibrationError
from graphc.graph import Graph
from graphc.parallel import spread
from graphc.pipeline import PassContext

PROBES = 32  # random vectors in all; each batch takes at least one


def traces(graph: Graph, names: Sequence[str], ctx: PassContext, probes: int = PROBES) -> dict[str, float]:
    """The trace for each of the weights `names`; one job for each batch of `ctx.calibration`."""
    if not ctx.calibration:
        raise CalibrationError("sensitivities need calibration data")
    batches = ctx.calibration[:probes]
    each = max(1, probes // len(batches))
    jobs = [(graph, names, batch, each, ctx.seed + number) for number, batch in enumerate(batches)]
    made = spread(ctx, "Hessian traces", _traces, jobs)
    return {name: sum(part[name] for part in made) / len(made) for name in names}


def scores(graph: Graph, found: Candidates, ctx: PassContext) -> dict[Key, float]:
    """The score of every candidate, see the module's docstring."""
    names = [name for item in found.groups for name in item.weights]
    trace = traces(graph, names, ctx)
    return {
        key: sum(
            trace[name] / weight.numel() * float((weight - graph.weights[name]).square().sum()) / 2
            for name, weight in candidate.weights.items()
        )
        for key, candidate in found.items()
    }


def _traces(graph: Graph, names: Sequence[str], batch: Sequence[Tensor], probes: int, seed: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(seed)
    totals = dict.fromkeys(names, 0.0)
    with fitting_threads(graph), plain_attention():
        outputs, leaves = differentiable(graph, names, batch)
        loss = divergence([output.detach() for output in outputs], outputs)
        tracked = list(leaves.values())
        gradients = torch.autograd.grad(loss, tracked, create_graph=True, allow_unused=True, materialize_grads=True)
        for probe in range(probes):
            signs = [torch.randint(0, 2, leaf.shape, generator=generator).to(leaf.dtype) * 2 - 1 for leaf in tracked]
            product = sum(((g * v).sum() for g, v in zip(gradients, signs, strict=True)), torch.zeros(()))
            again = torch.autograd.grad(
                product, tracked, retain_graph=probe + 1 < probes, allow_unused=True, materialize_grads=True
            )
            for name, h, v in zip(leaves, again, signs, strict=True):
                totals[name] += float((h * v).sum()) / probes
    return totals
