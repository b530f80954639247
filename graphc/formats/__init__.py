"""Weight formats: how a weight is stored, as an expression over smaller tensors. One file, one format.

A format is a frozen dataclass whose fields are its options; its text is `name` or `name(option=value,...)`, such as
`linear(bits=4,group=32)`, where `name` is the file's and the class's. Formats see matrices [rows, columns]; the weight
of a convolution is taken as [O, C * taps]. Sums and products of formats are formats (graphc.expressions).
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from types import ModuleType
from typing import Any

from torch import Tensor, fx

from graphc.errors import FormatError
from graphc.graph import Graph
from graphc.structure import Structure

Shape = tuple[int, int]


@dataclass(frozen=True)
class Stored:
    """A decoding expression found in a graph: its format and the get_attr node of each part."""

    format: Format
    parts: Mapping[str, fx.Node]


@dataclass(frozen=True)
class Format(ABC):
    """`encode` makes the parts, `express` the expression over them; what they mean follows from the expression.

    Fields that do not compare are no options, but what `fitted` found.
    """

    def fitted(self, weights: Iterable[Tensor]) -> Format:
        """This format with what the f32 matrices that it will encode have in common; most formats have nothing."""
        return self

    @abstractmethod
    def encode(self, weight: Tensor, moments: Tensor | None = None) -> dict[str, Tensor]:
        """The parts of an f32 matrix [rows, columns], such that the error E = weight - decode(parts) is small.

        moments: G of the layer's inputs, [columns, columns] (graphc.moments): tr(E G E^T) shall then be small, as far
        as the format knows how; without, |E|^2. Raises FormatError, with what would be legal, where it does not fit.
        """

    @abstractmethod
    def express(self, graph: Graph, parts: Mapping[str, Tensor], shape: Shape, name: str) -> fx.Node:
        """Add the parts as weights `name.part` and the operators that decode them to f32 `shape`; the last node."""

    @classmethod
    @abstractmethod
    def recognize(cls, node: fx.Node) -> Stored | None:
        """The inverse of `express`: what is stored, where `node` is the last of such an expression."""

    @property
    @abstractmethod
    def label(self) -> str:
        """A word or two for reports: `int4 g32`."""

    def decode(self, parts: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """The weight that the parts stand for: the expression, run in torch."""
        graph = Graph("decode", Structure.of(((), {})), Structure.of(0))
        graph.set_output([self.express(graph, parts, shape, "weight")])
        return graph.run_flat([])[0]

    def bytes(self, parts: Mapping[str, Tensor]) -> int:
        """Bytes that the parts take, all of them counted."""
        return sum(part.nbytes for part in parts.values())

    def __str__(self) -> str:
        changed = [item for item in fields(self) if item.compare and getattr(self, item.name) != item.default]
        options = ",".join(f"{item.name}={_text(getattr(self, item.name))}" for item in changed)
        return f"{_name(type(self))}({options})" if options else _name(type(self))


def _name(kind: type[Format]) -> str:
    return kind.__module__.rpartition(".")[2]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_FORMAT = re.compile(r"\s*(?P<name>\w+)\s*(?:\((?P<options>[^()]*)\))?\s*")


def format_names() -> list[str]:
    """All formats by name: the files of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def parse(text: str) -> Format:
    """The format that a text names, or the sum or product of formats. Raises FormatError for an unknown format or
    option, or a value of another type."""
    found = _FORMAT.fullmatch(text)
    if found is None and set(text) & set("+*;"):
        expression: Format = _expressions().parse(text)
        return expression
    if found is None:
        raise FormatError(
            f"cannot read the weight format '{text}'; expected name or name(option=value,...), sums or products of them"
        )
    if found["name"] not in format_names():
        raise FormatError(f"unknown weight format '{found['name']}'; known formats: {', '.join(format_names())}")
    kind = _class(found["name"])
    legal = {item.name: item.default for item in fields(kind) if item.compare}
    values: dict[str, Any] = {}
    for option in filter(None, (found["options"] or "").split(",")):
        key, equals, value = map(str.strip, option.partition("="))
        if not equals or key not in legal or key in values:
            raise FormatError(f"{text}: '{option.strip()}' is no option=value; options: {', '.join(legal)}, each once")
        values[key] = _value(value)
        if isinstance(values[key], bool) != isinstance(legal[key], bool):
            raise FormatError(f"{text}: {key}={value} must be {'true or false' if value not in _TRUTH else 'a number'}")
    return kind(**values)


_TRUTH = {"true": True, "false": False}


def _value(text: str) -> Any:
    if text in _TRUTH:
        return _TRUTH[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _class(name: str) -> type[Format]:
    module = importlib.import_module(f"graphc.formats.{name}")
    kind: type[Format] = getattr(module, "".join(word.capitalize() for word in name.split("_")))
    return kind


def recognize(node: fx.Node) -> Stored | None:
    """What is stored, where `node` is the last of a format's decoding expression."""
    found: Iterator[Stored | None] = (_class(name).recognize(node) for name in format_names())
    return next(filter(None, found), None) or _expressions().recognize(node)


def _expressions() -> ModuleType:
    """Imported late: it is made of this package's formats."""
    return importlib.import_module("graphc.expressions")
