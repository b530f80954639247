"""Parametrizations that stand for what a format stores, and the graph that stores it."""

from __future__ import annotations

from glob import escape
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from graphc import formats
from graphc.errors import TrainingError
from graphc.formats import Format
from graphc.formats.binary import Binary
from graphc.graph import Graph
from graphc.trainable import Trainable

LATENT = ".latent"  # ends the name of a weight that stands behind parts of the name without it


@runtime_checkable
class StoredWeight(Protocol):
    """The parametrization of a latent weight [O, ...]; name: of the weight that it is registered for."""

    name: str

    @property
    def format(self) -> Format: ...

    def parts(self, latent: Tensor) -> dict[str, Tensor]:
        """What the format stores."""
        ...


def stored_weights(module: Trainable) -> list[tuple[StoredWeight, Tensor]]:
    """All of them, and the latent weights behind them."""
    chains = module.parametrizations.values() if parametrize.is_parametrized(module) else ()  # type: ignore[operator]
    return [(chain[0], chain.original) for chain in chains if isinstance(chain[0], StoredWeight)]


def expressed(module: Trainable) -> Graph:
    """A new graph in which each latent weight is its format's own expression over stored parts.

    Parts that are equal, such as a shared codebook, are one after the pass `eliminate_common_subexpressions`.
    """
    result = module.graph()
    for given, latent in stored_weights(module):
        reading = [node for node in result if node.op == "get_attr" and node.target == given.name]
        with result.at(reading[0], path=next(iter(reading[0].users)).meta["path"]):
            shape = (len(latent), latent[0].numel())
            decoded = given.format.express(result, given.parts(latent), shape, given.name.removesuffix(LATENT))
            if latent.dim() != 2:
                decoded = result.call(torch.ops.aten.view.default, decoded, list(latent.shape))
        for node in reading:
            node.replace_all_uses_with(decoded)
    result.drop_unused()
    return result


class Relative(nn.Module):
    """The parametrization of a value by the logarithm of its ratio to the first, so that a step of training changes
    large and small ones by like shares; a nought stays."""

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.initial: Tensor
        self.register_buffer("initial", initial.detach().clone())

    def forward(self, logarithm: Tensor) -> Tensor:
        return self.initial * logarithm.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        return torch.where(self.initial == 0, 0.0, value / self.initial).log().nan_to_num(neginf=0.0)


def compressed_trainable(graph: Graph) -> Trainable:
    """A Trainable of a graph whose weights may be compressed: all that is stored as floats is trained, codes stay.

    Scales of integers, smaller than other weights by as much as integers are large, move by shares of themselves; the
    signs of `binary` stay what they are. Raises TrainingError where no gradient passes: through an operator of graphc
    that takes a value of the inputs.
    """
    of_inputs: set[fx.Node] = set()
    signs: set[str] = set()
    scales: dict[str, None] = {}
    for node in graph:
        if node.op == "placeholder" or any(each in of_inputs for each in node.all_input_nodes):
            of_inputs.add(node)
            if node.op == "call_function" and str(node.target).startswith("graphc."):
                where = f" of layer '{node.meta['path']}'" if node.meta["path"] else ""
                raise TrainingError(
                    f"%{node.name}{where} is {node.target}, through which no gradient passes: train the graph before "
                    "its activations are quantized"
                )
        elif node.op == "call_function":
            stored = formats.recognize(node)
            if stored is not None and isinstance(stored.format, Binary):
                signs.add(str(stored.parts["codebook"].target))
            if node.target is torch.ops.graphc.dequantize_groups.default and graph.weight(node.args[1]) is not None:
                scales[str(node.args[1].target)] = None  # type: ignore[union-attr]
    module = Trainable(graph, [escape(name) for name in sorted(signs)])
    for name in scales:
        if isinstance(value := module.weight(name), nn.Parameter):
            module.parametrize(name, Relative(value))
    return module
