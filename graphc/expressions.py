"""Sums and products of weight formats, which are formats themselves.

    linear(bits=2,group=32) + low_rank(rank=8)                    what rounding loses, made good by two thin matrices
    vector(d=8) + vector(d=8)                                     residual codebooks
    low_rank(rank=1) * binary + unstructured(density=0.4); rounds=20      SLaB

Each term of a sum encodes what those before it leave. With `rounds` above 1 the terms take turns: each encodes once
more what all others leave, and the best of all rounds stays. This is SLaB's alternation (arXiv 2604.04493: W = S + L *
B, where S are single weights chosen by Wanda's score, B signs and L of rank 1). A whitened low_rank after one round of
integers is the compensation of a rounding error by its leading directions (Zhang et al., "QERA", ICLR 2025). In a
product one factor holds the signs and the other the magnitudes.

No kernel reads a sum or a product as stored: they are decoded at load. The pass `split_sums` makes of a linear layer
one layer for each term of its sum, where there are kernels for all of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from graphc import formats
from graphc.errors import FormatError
from graphc.formats import Format, Shape, Stored
from graphc.formats.binary import Binary
from graphc.graph import Graph, arguments
from graphc.moments import loss

aten = torch.ops.aten


@dataclass(frozen=True)
class Sum(Format):
    """Parts: those of each term, `0.codes`, `1.left`, ... rounds: how often each term is encoded."""

    terms: tuple[Format, ...]
    rounds: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.rounds, int) or self.rounds < 1:
            raise FormatError(f"{self}: rounds must be a number from 1")

    def __str__(self) -> str:
        return " + ".join(map(str, self.terms)) + (f"; rounds={self.rounds}" if self.rounds != 1 else "")

    @property
    def label(self) -> str:
        return " + ".join(term.label for term in self.terms)

    def fitted(self, weights: Iterable[Tensor]) -> Format:
        return replace(self, terms=(self.terms[0].fitted(weights), *self.terms[1:]))

    def encode(self, weight: Tensor, moments: Tensor | None = None) -> dict[str, Tensor]:
        w = weight.to(torch.float32)
        found: list[dict[str, Tensor]] = [{} for _ in self.terms]
        decoded = [torch.zeros_like(w) for _ in self.terms]
        best, least = _joined(found), float("inf")
        for _ in range(self.rounds):
            for place, term in enumerate(self.terms):
                others = sum(value for other, value in enumerate(decoded) if other != place)
                found[place] = term.encode(w - others, moments)
                decoded[place] = term.decode(found[place], (w.shape[0], w.shape[1]))
            lost = loss(w - sum(decoded), moments)
            if lost < least:
                best, least = _joined(found), lost
        return best

    def express(self, graph: Graph, parts: Mapping[str, Tensor], shape: Shape, name: str) -> fx.Node:
        first, *others = _expressed(self.terms, graph, parts, shape, name)
        for other in others:
            first = graph.call(aten.add.Tensor, first, other)
        return first

    @classmethod
    def recognize(cls, node: fx.Node) -> Stored | None:
        if node.target is not aten.add.Tensor or arguments(node)[2] != 1:
            return None
        sources: list[Any] = list(node.args)
        while isinstance(sources[0], fx.Node) and sources[0].target is aten.add.Tensor:
            sources[:1] = sources[0].args[:2]
        found = _recognized(node, sources)
        return Stored(cls(tuple(item.format for item in found)), _parts(found)) if found else None


@dataclass(frozen=True)
class Product(Format):
    """Element by element. Parts: those of each factor, as in a sum. One of two factors must be `binary`: it holds the
    signs, without a scale, which would be one too many; the other encodes the magnitudes, weighted with the diagonal of
    the moments, which signs do not change."""

    factors: tuple[Format, ...]

    def __post_init__(self) -> None:
        if len(self.factors) != 2 or sum(isinstance(factor, Binary) for factor in self.factors) != 1:
            raise FormatError(f"{self}: a product has two factors, of which one is binary and holds the signs")
        unscaled = tuple(Binary(scale=False) if isinstance(factor, Binary) else factor for factor in self.factors)
        object.__setattr__(self, "factors", unscaled)

    def __str__(self) -> str:
        return " * ".join(map(str, self.factors))

    @property
    def label(self) -> str:
        return " * ".join(factor.label for factor in self.factors)

    def encode(self, weight: Tensor, moments: Tensor | None = None) -> dict[str, Tensor]:
        diagonal = None if moments is None else torch.diag(moments.diagonal())
        w = weight.to(torch.float32)
        return _joined(
            [factor.encode(w if isinstance(factor, Binary) else w.abs(), diagonal) for factor in self.factors]
        )

    def express(self, graph: Graph, parts: Mapping[str, Tensor], shape: Shape, name: str) -> fx.Node:
        return graph.call(aten.mul.Tensor, *_expressed(self.factors, graph, parts, shape, name))

    @classmethod
    def recognize(cls, node: fx.Node) -> Stored | None:
        if node.target is not aten.mul.Tensor:
            return None
        found = _recognized(node, node.args)
        if sum(isinstance(item.format, Binary) for item in found) != 1:
            return None
        return Stored(cls(tuple(item.format for item in found)), _parts(found))


def parse(text: str) -> Format:
    """`format * format + ...; rounds=n`, products before sums; a single format as it is. Raises FormatError."""
    body, semicolon, options = text.partition(";")
    terms = []
    for term in _split(body, "+"):
        factors = tuple(formats.parse(factor) for factor in _split(term, "*"))
        terms.append(factors[0] if len(factors) == 1 else Product(factors))
    if len(terms) == 1 and not semicolon:
        return terms[0]
    key, _, value = options.partition("=")
    if semicolon and (key.strip() != "rounds" or not value.strip().isdecimal() or len(terms) == 1):
        raise FormatError(f"'{text}': what follows ';' must be rounds=number, after a sum")
    return Sum(tuple(terms), int(value) if semicolon else 1)


def recognize(node: fx.Node) -> Stored | None:
    """The sum or product that is stored, where `node` is the last of its expression."""
    return Sum.recognize(node) or Product.recognize(node)


def _split(text: str, at: str) -> list[str]:
    """Between the `at` that stand outside of parentheses."""
    pieces, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == at and not depth:
            pieces.append("")
        else:
            pieces[-1] += char
    return pieces


def _joined(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{place}.{name}": part for place, found in enumerate(parts) for name, part in found.items()}


def _expressed(
    items: Iterable[Format], graph: Graph, parts: Mapping[str, Tensor], shape: Shape, name: str
) -> list[fx.Node]:
    nodes = []
    for place, item in enumerate(items):
        prefix = f"{place}."
        own = {key.removeprefix(prefix): part for key, part in parts.items() if key.startswith(prefix)}
        nodes.append(item.express(graph, own, shape, f"{name}.{place}"))
    return nodes


def _recognized(node: fx.Node, sources: Iterable[Any]) -> list[Stored]:
    """What each source stores; empty where one is no stored weight of the node's shape."""
    found = []
    for source in sources:
        same = isinstance(source, fx.Node) and source.meta["type"] == node.meta["type"]
        stored = formats.recognize(source) if same else None
        if stored is None:
            return []
        found.append(stored)
    return found


def _parts(found: Iterable[Stored]) -> dict[str, fx.Node]:
    return {f"{place}.{name}": part for place, item in enumerate(found) for name, part in item.parts.items()}
