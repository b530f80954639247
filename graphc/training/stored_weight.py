"""Parametrizations that stand for what a format stores, and the graph that stores it."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from graphc.formats import Format
from graphc.graph import Graph
from graphc.trainable import Trainable

LATENT = ".latent"  # ends the name of a weight that stands behind parts of the name without it


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
    return [(cast(StoredWeight, chain[0]), chain.original) for chain in chains]


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
