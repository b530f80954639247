"""How much each unit of coupled channels matters: by the size of its weights, or by what the loss says of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from graphc.calibration import fitting_threads
from graphc.channels import FIXED, LAYERS, Coupling
from graphc.errors import CalibrationError
from graphc.graph import Graph
from graphc.pipeline import PassContext


def _units(coupling: Coupling) -> int:
    return 1 + max((max(group) for group in coupling.groups), default=-1)


def magnitude(graph: Graph, coupling: Coupling) -> Tensor:
    """float64 [units]: shares of each layer's energy, so that layers of large and of small weights count alike."""
    total = torch.zeros(_units(coupling), dtype=torch.float64)
    weights = [node.args[1] for node in graph.calls if node.target in LAYERS]
    layers = {str(weight.target) for weight in weights if isinstance(weight, fx.Node) and weight.op == "get_attr"}
    for name in sorted(layers & coupling.weights.keys()):
        for axis, units in coupling.weights[name].items():
            squares = graph.weights[name].detach().double().square().movedim(axis, 0).flatten(1).sum(1)
            energy = _by_unit(squares, units, len(total))
            total += energy / energy.sum().clamp(min=1e-300)
    return total


def _by_unit(values: Tensor, units: Sequence[int], count: int) -> Tensor:
    """[..., places] -> [..., units]: sums over the places of each unit; the fixed ones are left out."""
    places = torch.tensor([unit if unit != FIXED else count for unit in units])
    return values.new_zeros(*values.shape[:-1], count + 1).index_add(-1, places, values)[..., :count]


def taylor(graph: Graph, coupling: Coupling, ctx: PassContext) -> Tensor:
    """float64 [units]. A layer's sum over the weights w_cj of an output channel c of w_cj dL/dw_cj is the sum over its
    positions of (y_c - b_c) dL/dy_c, and that over an input channel's weights the sum of x_c dL/dx_c, the gradient
    through this layer alone: one backward pass gives all of a batch's samples."""
    if not ctx.calibration:
        raise CalibrationError("prune_channels{importance=taylor} needs calibration data, an iterable of batches")
    probe = graph.clone()
    seen: list[tuple[Tensor, Sequence[int], int, Tensor | None]] = []
    for node in probe.calls:
        if node.target in LAYERS:
            node.target = _recording(node, coupling, seen)
    total, samples = torch.zeros(_units(coupling), dtype=torch.float64), 0
    with fitting_threads(graph):
        for number, batch in enumerate(ctx.calibration):
            seen.clear()
            loss = sum(map(_own_decision, (value for value in probe.run_flat(batch) if value.is_floating_point())))
            gradients = torch.autograd.grad(loss, [value for value, *_ in seen], allow_unused=True)  # type: ignore[arg-type]
            for (value, units, axis, bias), gradient in zip(seen, gradients, strict=True):
                if gradient is not None:
                    product = (value.detach().movedim(axis, -1) - (0 if bias is None else bias)) * gradient.movedim(
                        axis, -1
                    )
                    per_sample = product.double().reshape(len(product), -1, product.shape[-1]).sum(1)
                    total += _by_unit(per_sample, units, len(total)).abs().sum(0)
            samples += len(batch[0])
            ctx.progress("channel importance", number + 1, len(ctx.calibration))
    return total / samples


def _recording(node: fx.Node, coupling: Coupling, seen: list[Any]) -> Any:
    """The layer as a function that keeps its input, seen by itself alone, and its result."""
    target: Any = node.target
    into, out = (coupling.values.get(name) for name in (node.all_input_nodes[0].name, node.name))

    def call(x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Tensor:
        x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        result: Tensor = target(x, weight, bias, *rest)
        if into is not None and into.units != (out.units if out else None):  # the same channels count once
            seen.append((x, into.units, into.axis, None))
        if out is not None:
            seen.append((result, out.units, out.axis, bias))
        return result

    return call


def _own_decision(result: Tensor) -> Tensor:
    """The cross entropy, summed over samples, against the classes (axis 1 of images, else the last) decided on; half
    the squares where there is but one."""
    logits = result.movedim(1, -1) if result.dim() == 4 else result
    if logits.dim() < 2 or logits.shape[-1] == 1:
        return logits.square().sum() / 2
    logits = logits.flatten(0, -2)
    return torch.nn.functional.cross_entropy(logits, logits.argmax(-1), reduction="sum")
