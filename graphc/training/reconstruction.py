"""Learn roundings part by part, so that each part of a quantized graph gives what it gives in the float graph.

    minimize over h, s:   |y'(x') - y(x)|^2 / |y'_nearest(x') - y(x)|^2  +  mean of 1 - |2 h - 1|^b,   b: 20 -> 2

h: whether a weight is rounded up (AdaRound, Nagel et al., ICML 2020, section 3); s: the step sizes of the activations;
x': what the parts before give once they are learned. A part is a layer, or the layers of one module as in BRECQ (Li et
al., ICLR 2021, section 3.2), with all operators up to the next part. QDrop (Wei et al., ICLR 2022, section 3.3): while
learning, a random share of the activations stays as it is.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

from graphc.graph import Graph
from graphc.progress import Progress, silent
from graphc.training.fake_quantization import LAYERS, FakeQuantized, LearnedRounding, evaluate, mixed

Values = dict[fx.Node, Any]
_LARGEST_BLOCK = 6  # layers; of a module with more, each is learned alone
_WARM = 0.2  # of the iterations go by without the regularizer


@dataclass(frozen=True)
class Reconstruction:
    """granularity: what is compared with the float graph, the result of each layer or of each module's layers together.
    iterations: of each of them; batch: samples in one. learning_rate: of roundings; step_rate: of the activations' step
    sizes, whose logarithms learn (0: they stay). drop: the share of activations that stay as they are meanwhile."""

    granularity: Literal["layer", "block"] = "block"
    iterations: int = 100
    batch: int = 32
    learning_rate: float = 0.02
    step_rate: float = 0.002
    drop: float = 0.5


@dataclass(frozen=True)
class Part:
    """Consecutive operators of the quantized graph. inputs: values from before; outputs: values that are read later;
    both with the float graph's nodes that they stand for. Of inputs these are of decoded values only: others, such as a
    mask, may be infinite, and differ by nothing that this part could learn."""

    layers: tuple[fx.Node, ...]
    nodes: tuple[fx.Node, ...]
    inputs: dict[fx.Node, fx.Node | None]
    outputs: dict[fx.Node, fx.Node]


def reconstruct(
    original: Graph,
    quantized: Graph,
    batches: Sequence[Sequence[Tensor]],
    options: Reconstruction,
    seed: int = 0,
    progress: Progress = silent,
) -> Graph:
    """The quantized graph with learned roundings; `quantized` is what `quantize` made of `original`."""
    model = FakeQuantized(original, quantized, LearnedRounding, options.drop)
    found = parts(model, original, options.granularity)
    given = [[_fast(value) for value in batch] for batch in batches]
    ours: list[Values] = [dict(zip(quantized.placeholders, batch, strict=True)) for batch in given]
    theirs: list[Values] = [dict(zip(original.placeholders, batch, strict=True)) for batch in given]
    floats, known = original.calls, 0  # of the float graph's operators, how many are computed
    for number, part in enumerate(found):
        until = max([known, *(floats.index(node) + 1 for node in part.outputs.values())])
        with torch.no_grad():
            for values in theirs:
                evaluate(original, floats[known:until], values)
        known = until
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed * 1_000_003 + number)
            _learn(model, part, ours, theirs, options, lambda done, at=number: progress(
                "reconstructing", at * options.iterations + done, len(found) * options.iterations
            ))  # fmt: skip
        read = {used for other in found[number + 1 :] for used in other.inputs}
        awaited = {node for other in found[number + 1 :] for node in (*other.inputs.values(), *other.outputs.values())}
        awaited |= {used for node in floats[known:] for used in node.all_input_nodes}
        with torch.no_grad():
            model.eval()
            for values, reference in zip(ours, theirs, strict=True):
                model.evaluate(part.nodes, values)
                _forget(values, read)
                _forget(reference, awaited)
    return model.graph()


def parts(model: FakeQuantized, original: Graph, granularity: Literal["layer", "block"]) -> list[Part]:
    """The parts of a graph in order, found from the layers' module paths."""
    graph = model.quantized
    calls = [node for node in graph.calls if _depends_on_input(node)]
    layers = [node for node in calls if node.target in LAYERS and node.name in model.weights]
    blocks: list[list[fx.Node]] = []
    module = ""  # of the last block
    for layer in layers:
        if module and _inside(layer, module):
            blocks[-1].append(layer)
        else:
            blocks.append([layer])
            module = _block(layer, layers) if granularity == "block" else ""
    starts = [0, *(calls.index(block[0]) for block in blocks[1:]), len(calls)]
    floats = {node.name: node for node in original.calls if getattr(node.meta["type"], "dtype", None) == torch.float32}
    found = []
    for number, members in enumerate(blocks):
        nodes = calls[starts[number] : starts[number + 1]]
        inside_nodes = set(nodes)
        read = dict.fromkeys(used for node in nodes for used in node.all_input_nodes if used not in inside_nodes)
        varying = [used for used in read if _depends_on_input(used)]
        inputs = {used: _float(model, used, floats) if used in model.replaced else None for used in varying}
        decodings = [used for used in read if used in model.found]
        outputs = {}
        for node in nodes:
            stands_for = _float(model, node, floats)
            if stands_for is not None and any(user not in inside_nodes for user in node.users):
                outputs[node] = stands_for
        found.append(Part(tuple(members), (*decodings, *nodes), inputs, outputs))
    return found


def _float(model: FakeQuantized, node: fx.Node, floats: Mapping[str, fx.Node]) -> fx.Node | None:
    """What a value of the quantized graph is in the float graph."""
    while node in model.replaced:  # one may be quantized anew from another
        node = node.args[0].args[0]  # type: ignore[union-attr, assignment]
    return floats.get(node.name)


def _forget(values: Values, kept: Container[fx.Node | None]) -> None:
    """Of the operators' values, leave those of `kept`."""
    for node in [node for node in values if node.op == "call_function" and node not in kept]:
        del values[node]


def _block(layer: fx.Node, layers: Sequence[fx.Node]) -> str:
    """The path of the least module around a layer that has several; "" where it has too many."""
    module = str(layer.meta["path"])
    while module:
        module = module.rpartition(".")[0]
        count = sum(_inside(other, module) for other in layers)
        if count > 1:
            return module if count <= _LARGEST_BLOCK else ""
    return ""


def _inside(layer: fx.Node, module: str) -> bool:
    return str(layer.meta["path"]).startswith(f"{module}.")


def _depends_on_input(node: fx.Node) -> bool:
    """Whether a value changes with the inputs; kept with the node, for graphs are deep."""
    if "varies" not in node.meta:
        node.meta["varies"] = node.op == "placeholder" or any(map(_depends_on_input, node.all_input_nodes))
    return bool(node.meta["varies"])


def _learn(
    model: FakeQuantized, part: Part, ours: list[Values], theirs: list[Values], options: Reconstruction, progress: Any
) -> None:
    roundings: list[LearnedRounding] = [model.weights[layer.name] for layer in part.layers]  # type: ignore[misc]
    steps = [
        model.activations[model.replaced[node]].step.logarithm  # type: ignore[union-attr]
        for node in part.nodes
        if node in model.replaced and node not in model.found
    ]
    groups = [{"params": [item.logit for item in roundings], "lr": options.learning_rate}]
    if steps and options.step_rate:
        groups.append({"params": list(dict.fromkeys(steps)), "lr": options.step_rate})
    optimizer = torch.optim.Adam(groups)

    def loss(places: Sequence[int], drop: bool) -> Tensor:
        total = torch.zeros(())
        for place in places:
            values = {node: ours[place][node] for node in part.inputs} | _inputs(ours[place])
            for node, reference in part.inputs.items():
                if drop and options.drop and reference is not None:
                    values[node] = mixed(values[node], theirs[place][reference], options.drop)
            model.evaluate(part.nodes, values)
            for node, reference in part.outputs.items():
                target = theirs[place][reference]
                total = total + (values[node] - target).square().mean() / target.square().mean().clamp(min=1e-12)
        return total / len(places)

    everything = range(len(ours))
    model.eval()
    for item in roundings:
        item.soft = False
    with torch.no_grad():
        nearest = float(loss(everything, False))
    for item in roundings:
        item.soft = True
    size = next((value.shape[0] for value in ours[0].values() if value.dim()), 1)
    count = min(len(ours), max(1, options.batch // size))
    weights = sum(item.logit.numel() for item in roundings)
    model.train()
    for iteration in range(options.iterations if nearest > 0 else 0):
        places = torch.randperm(len(ours))[:count].tolist()
        share = (iteration / options.iterations - _WARM) / (1 - _WARM)
        value = loss(places, True) / nearest
        if share > 0:
            value = value + sum(item.undecided(20 - 18 * share) for item in roundings) / weights
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        progress(iteration + 1)
    progress(options.iterations)
    for item in roundings:
        item.soft = False


def _fast(value: Tensor) -> Tensor:
    """Images with their channels last, as convolutions on processors train fastest; what is computed keeps that."""
    return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value


def _inputs(values: Values) -> Values:
    return {node: value for node, value in values.items() if node.op == "placeholder"}
