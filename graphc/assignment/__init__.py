"""The choice of a format for each item under bounds on size, latency and loss: an integer program, or trained gates.

Both give an Assignment, which prints as the passes that carry it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphc.analysis.candidates import FLOAT, Candidates, Key, compressing
from graphc.analysis.items import Item
from graphc.pipeline import Pass, Pipeline


@dataclass(frozen=True)
class Option:
    """A format that an item can have: bytes of its stored parts, predicted loss, nanoseconds of a run (0: unknown);
    data: whether it is encoded by the moments of the layers' inputs."""

    format: str
    bytes: int
    loss: float
    nanoseconds: float = 0.0
    data: bool = False


@dataclass(frozen=True)
class Choice:
    """An item and what it can become."""

    item: Item
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Assignment:
    """An option for each item."""

    items: tuple[Item, ...]
    options: tuple[Option, ...]

    @property
    def bytes(self) -> int:
        """Of the items' weights alone."""
        return sum(option.bytes for option in self.options)

    @property
    def kernels(self) -> int:
        """How many kernels they take: items of one kind in one format share theirs."""
        return len({(item.kind, option.format) for item, option in zip(self.items, self.options, strict=True)})

    def size(self, kernel: float) -> float:
        """Bytes of the items' weights and of their kernels, of `kernel` bytes each."""
        return self.bytes + kernel * self.kernels

    @property
    def loss(self) -> float:
        """Predicted: the sum of the items' losses."""
        return sum(option.loss for option in self.options)

    @property
    def nanoseconds(self) -> float:
        return sum(option.nanoseconds for option in self.options)

    @property
    def formats(self) -> dict[str, str]:
        """Format by item."""
        return {item.name: option.format for item, option in zip(self.items, self.options, strict=True)}

    @property
    def passes(self) -> tuple[Pass, ...]:
        """One pass for each format, with the layers that it takes; those that stay in f32 are in none."""
        layers: dict[tuple[str, bool], list[str]] = {}
        for item, option in zip(self.items, self.options, strict=True):
            if option.format != FLOAT:
                layers.setdefault((option.format, option.data), []).extend(item.layers)
        return tuple(compressing(text, taken, data) for (text, data), taken in sorted(layers.items()))

    def __str__(self) -> str:
        """The spec of the passes: `compress{format="linear(bits=4)",layers=[a,b]},...`."""
        return str(Pipeline(self.passes))


def choices(
    found: Candidates, losses: Mapping[Key, float], nanoseconds: Mapping[Key, float] | None = None
) -> tuple[Choice, ...]:
    """The items of `found` with their options, by increasing bytes.

    losses: one sensitivity, of every candidate. nanoseconds: of every candidate that may be chosen; the others are
    left out. None where latency does not matter.
    """
    result = []
    for item in found.groups:
        keys = [key for key in found if key[0] == item.name and (nanoseconds is None or key in nanoseconds)]
        options = (
            Option(key[1], found[key].bytes, losses[key], 0.0 if nanoseconds is None else nanoseconds[key], found.data)
            for key in keys
        )
        result.append(Choice(item, tuple(sorted(options, key=lambda option: (option.bytes, option.format)))))
    return tuple(result)
