"""The gradient way to an assignment: binarized gates over the paths of each item, with a size-aware loss.

Each item has a parameter a[f] for every format; p = softmax(a). A step draws one path of each item, and the weights are
those of the paths drawn, so that one model runs. The gates' gradients pass straight through the draw s:

    dL/dg[f] = <dL/dw, d> + 1/2 <v, d>^2,   d = w[f] - w[s],   dL/da[j] = sum_f dL/dg[f] p[f] ([f = j] - p[j])

(Cai, Zhu & Han, "ProxylessNAS", ICLR 2019, section 3.2 and equation 4; every path's term is used, for stored weights
cost no further run). Formats differ by more than a straight line can tell, least of all near the float weights, where
the slope is nought: v is a gradient whose covariance is the curvature (analysis.divergence.random_gradients). The loss
is the divergence from the float outputs, in units of its running mean, plus a multiple of the expected size over the
budget less one, as far as it is above nought; the multiple grows while the size is too large, as a multiplier of
Lagrange does. At the end the likeliest assignment that keeps the budget is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from graphc.analysis.candidates import Candidates
from graphc.analysis.divergence import divergence, random_gradients
from graphc.analysis.gradients import differentiable
from graphc.assignment import Assignment, Choice
from graphc.assignment.integer_program import integer_program
from graphc.calibration import fitting_threads
from graphc.errors import CalibrationError
from graphc.graph import Graph
from graphc.pipeline import PassContext


def gates(
    graph: Graph,
    found: Candidates,
    choices: Sequence[Choice],
    ctx: PassContext,
    size: int,
    *,
    steps: int = 400,
    rate: float = 0.05,
) -> Assignment:
    """An assignment of at most `size` bytes of the items' weights, trained on `ctx.calibration` from `ctx.seed`.

    steps: batches seen. rate: of Adam. The losses of the result are those of `choices`, so that it compares with the
    integer program's. Raises BudgetError where nothing fits, CalibrationError without calibration data.
    """
    if not ctx.calibration:
        raise CalibrationError("gates are trained on calibration data")
    integer_program(choices, size=size)  # something fits
    generator = torch.Generator().manual_seed(ctx.seed)
    bytes = [torch.tensor([float(option.bytes) for option in choice.options]) / max(size, 1) for choice in choices]
    parameters = [torch.zeros(len(choice.options), requires_grad=True) for choice in choices]
    optimizer = torch.optim.Adam(parameters, rate)
    multiplier, usual = 1.0, 0.0
    with torch.no_grad(), fitting_threads(graph):
        expected = [graph.run_flat(batch) for batch in ctx.calibration]
    for step in range(steps):
        place = step % len(ctx.calibration)
        probabilities = [a.softmax(0) for a in parameters]
        drawn = [int(torch.multinomial(p.detach(), 1, generator=generator)) for p in probabilities]
        with fitting_threads(graph):
            lost, slopes = _slopes(graph, found, choices, drawn, ctx.calibration[place], expected[place], generator)
        usual = lost if not step else 0.95 * usual + 0.05 * lost
        share = sum((p @ b for p, b in zip(probabilities, bytes, strict=True)), torch.zeros(()))
        excess = (share - 1).clamp(min=0)
        loss = multiplier * excess + sum(
            (p @ slope / max(usual, 1e-12) for p, slope in zip(probabilities, slopes, strict=True)), torch.zeros(())
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        multiplier += float(excess.detach())  # dual ascent
        ctx.progress("training gates", step + 1, steps)
    likely = [
        Choice(
            choice.item,
            tuple(
                replace(option, loss=-float(p))
                for option, p in zip(choice.options, a.detach().log_softmax(0), strict=True)
            ),
        )
        for choice, a in zip(choices, parameters, strict=True)
    ]
    taken = integer_program(likely, size=size).formats
    picked = tuple(
        next(option for option in choice.options if option.format == taken[choice.item.name]) for choice in choices
    )
    return Assignment(tuple(choice.item for choice in choices), picked)


def _slopes(
    graph: Graph,
    found: Candidates,
    choices: Sequence[Choice],
    drawn: Sequence[int],
    batch: Sequence[Tensor],
    expected: Sequence[Tensor],
    generator: torch.Generator,
) -> tuple[float, list[Tensor]]:
    """The divergence with the paths drawn, and what each other path would add to it: dL/dg of every gate."""
    sampled = graph.clone()
    for choice, place in zip(choices, drawn, strict=True):
        sampled.weights.update(found[choice.item.name, choice.options[place].format].weights)
    names = [name for choice in choices for name in choice.item.weights]
    given, leaves = differentiable(sampled, names, batch)
    loss = divergence(expected, given)
    outputs = [output for output in given if output.requires_grad]
    vectors = random_gradients([output.detach() for output in outputs], generator)
    tracked = list(leaves.values())
    first = torch.autograd.grad(loss, tracked, retain_graph=True, allow_unused=True, materialize_grads=True)
    second = torch.autograd.grad(outputs, tracked, vectors, allow_unused=True, materialize_grads=True)
    gradients = dict(zip(names, zip(first, second, strict=True), strict=True))
    slopes = []
    for choice in choices:
        slope, curve = torch.zeros(len(choice.options)), torch.zeros(len(choice.options))
        for place, option in enumerate(choice.options):
            for name, weight in found[choice.item.name, option.format].weights.items():
                change = weight - sampled.weights[name]
                slope[place] += (gradients[name][0] * change).sum()
                curve[place] += (gradients[name][1] * change).sum()
        slopes.append(slope + curve.square() / 2)
    return float(loss.detach()), slopes
