"""Taylor and Fisher scores of all formats at once: each gradient is multiplied by every candidate's error.

With E = w' - w of a candidate, and g the gradient of the negative log-likelihood of a label drawn from the model's own
distribution (see `analysis.divergence`):

    fisher   1/2 mean <g, E>^2 = 1/2 E^T F E     the divergence to second order (Amari, 1998; LeCun et al., "Optimal
                                                 Brain Damage", 1989, without its diagonal), with the empirical F
    taylor   1/2 mean sum (g E)^2                its diagonal, the importance of Molchanov et al., "Importance
                                                 Estimation for Neural Network Pruning", CVPR 2019, equation 8

The first-order term <mean g, E> is nought where the labels are the model's own. Gradients cost one forward and one
backward pass each, however many formats there are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from graphc.analysis.candidates import FLOAT, Candidates, Key
from graphc.analysis.divergence import random_gradients
from graphc.calibration import fitting_threads
from graphc.errors import CalibrationError
from graphc.graph import Graph
from graphc.parallel import spread
from graphc.pipeline import PassContext

DRAWS = 64  # gradients in all; each batch gives at least one
_TOGETHER = 8  # gradients that are held at once
_COLUMNS = 1 << 15  # elements of all errors of a weight that a cache holds


@dataclass(frozen=True)
class Score:
    """Both in nats a position, see the module's docstring."""

    taylor: float
    fisher: float


def scores(graph: Graph, found: Candidates, ctx: PassContext, draws: int = DRAWS) -> dict[Key, Score]:
    """The scores of all candidates from about `draws` gradients over `ctx.calibration`; one job for several batches.

    Raises CalibrationError without calibration data. The labels are drawn from `ctx.seed`.
    """
    if not ctx.calibration:
        raise CalibrationError("sensitivities need calibration data")
    batches = ctx.calibration[:draws]
    each = max(1, draws // len(batches))
    errors = {
        key: {name: weight - graph.weights[name] for name, weight in found[key].weights.items()}
        for key in found.changed
    }
    starts = range(0, len(batches), _TOGETHER)
    jobs = [(graph, errors, batches[at : at + _TOGETHER], each, ctx.seed + at) for at in starts]
    made = spread(ctx, "gradients", _products, jobs)
    rows = {(item.name, FLOAT): Score(0.0, 0.0) for item in found.groups}
    for key in errors:
        diagonal, full = (sum(part[key][place] for part in made) / (2 * each * len(batches)) for place in (0, 1))
        rows[key] = Score(diagonal, full)
    return rows


def _products(
    graph: Graph, errors: Mapping[Key, Mapping[str, Tensor]], batches: Sequence[Sequence[Tensor]], draws: int, seed: int
) -> dict[Key, tuple[float, float]]:
    """For each candidate the sums of sum (g E)^2 and of <g, E>^2 over the draws from each batch."""
    readers: dict[str, list[Key]] = {}
    for key, error in errors.items():
        for name in error:
            readers.setdefault(name, []).append(key)
    totals = {key: (0.0, 0.0) for key in errors}
    with fitting_threads(graph):
        for gradients in _gradients(graph, sorted(readers), batches, draws, seed):
            diagonal = dict.fromkeys(errors, 0.0)
            along: dict[Key, Tensor | float] = dict.fromkeys(errors, 0.0)
            for name, drawn in gradients.items():
                keys = readers[name]
                squares, products = _against(drawn, [errors[key][name].flatten() for key in keys])
                for place, key in enumerate(keys):
                    diagonal[key] += float(squares[place])
                    along[key] = along[key] + products[:, place]
            for key, (first, second) in totals.items():
                totals[key] = first + diagonal[key], second + float(torch.as_tensor(along[key]).square().sum())
    return totals


def _against(gradients: Tensor, errors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """sum (g E)^2 over all g, f64 [errors], and <g, E>, f64 [gradients, errors], of gradients [gradients, n]. A part of
    the errors is read once for all gradients: one by one they would wait for memory."""
    squares = torch.zeros(len(errors), dtype=torch.float64)
    products = torch.zeros(len(gradients), len(errors), dtype=torch.float64)
    for start in range(0, gradients.shape[1], _COLUMNS):
        g = gradients[:, start : start + _COLUMNS]
        e = torch.stack([error[start : start + _COLUMNS] for error in errors])
        products += g @ e.t()
        squares += g.square().sum(0) @ e.square_().t()
    return squares, products


def _gradients(
    graph: Graph, names: Sequence[str], batches: Sequence[Sequence[Tensor]], draws: int, seed: int
) -> Iterator[dict[str, Tensor]]:
    """`draws` gradients from each batch, up to _TOGETHER at a time: f32 [gradients, elements] by weight."""
    waiting: list[dict[str, Tensor]] = []

    def together() -> dict[str, Tensor]:
        found = {name: torch.stack([each[name] for each in waiting]) for name in waiting[0]}
        waiting.clear()
        return found

    for number, batch in enumerate(batches):
        generator = torch.Generator().manual_seed(seed + number)
        given, leaves = differentiable(graph, names, batch)
        outputs = [output for output in given if output.requires_grad]
        for draw in range(draws):
            vectors = random_gradients([output.detach() for output in outputs], generator)
            found = torch.autograd.grad(
                outputs, list(leaves.values()), vectors, retain_graph=draw + 1 < draws, allow_unused=True
            )
            waiting.append({name: g.flatten() for name, g in zip(leaves, found, strict=True) if g is not None})
            if len(waiting) == _TOGETHER:
                yield together()
    if waiting:
        yield together()


def differentiable(
    graph: Graph, names: Sequence[str], batch: Sequence[Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The outputs of a run, and the weights `names` as leaves of torch's autograd that they depend on."""
    tracked = graph.clone()
    leaves = {name: graph.weights[name].detach().clone().requires_grad_() for name in names}
    tracked.weights.update(leaves)
    with torch.enable_grad(), plain_attention():
        outputs = tracked.run_flat(batch)
    if not any(output.requires_grad for output in outputs):
        raise CalibrationError(f"no floating output of {graph.name} depends on its layers: there is no sensitivity")
    return outputs, leaves


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Attention as plain products, which can be differentiated twice."""
    with sdpa_kernel(SDPBackend.MATH):
        yield
