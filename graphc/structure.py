"""The structure of a call: nested tuples, lists and dicts around a flat list of tensors, with no torch.

Inputs have the structure of the pair `(args, kwargs)`. Constants that a model was traced with (None, numbers, strings)
are part of the structure: a call must repeat them.

>>> both = Structure.of(({"ids": 1, "mask": 2}, None))
>>> both.text(["%ids", "%mask"])
'({"ids": %ids, "mask": %mask}, None)'
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from graphc.errors import InputError


@dataclass(frozen=True)
class Structure:
    """One level of nesting: `kind` is "leaf", "constant", "tuple", "list" or "dict"."""

    kind: str
    children: tuple[Structure, ...] = ()
    keys: tuple[str | int, ...] = ()  # of a dict, in order
    value: bool | int | float | str | None = None  # of a constant

    @staticmethod
    def of(value: Any, is_leaf: Callable[[Any], bool] = lambda item: item is not None) -> Structure:
        """The structure of a nested value; what is no container is a leaf where `is_leaf` says so, else a constant."""
        if isinstance(value, tuple | list):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return Structure(kind, tuple(Structure.of(item, is_leaf) for item in value))
        if isinstance(value, dict):
            return Structure("dict", tuple(Structure.of(item, is_leaf) for item in value.values()), tuple(value))
        return Structure("leaf") if is_leaf(value) else Structure("constant", value=value)

    @property
    def size(self) -> int:
        """Number of leaves."""
        return int(self.kind == "leaf") + sum(child.size for child in self.children)

    @property
    def num_plain(self) -> int | None:
        """For the structure of a call: how many positional arguments, where each is a leaf and there are no others."""
        positional, named = self.children
        plain = not named.children and all(child.kind == "leaf" for child in positional.children)
        return len(positional.children) if plain else None

    def flatten_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The leaves of a call, for the structure of a pair `(args, kwargs)`. Raises InputError as `flatten` does."""
        positional, named = self.children
        return positional.flatten(args, "args") + named.flatten(kwargs, "kwargs")

    def flatten(self, value: Any, where: str = "value") -> list[Any]:
        """The leaves of a value of this structure, in order. Raises InputError, which says `where`, for another one."""
        if self.kind == "leaf":
            return [value]
        if self.kind == "constant":
            if type(value) is not type(self.value) or value != self.value:
                raise InputError(f"{where} was {self.value!r} when the model was traced and must stay so")
            return []
        if self.kind == "dict":
            if not isinstance(value, dict) or set(value) != set(self.keys):
                found = sorted(map(str, value)) if isinstance(value, dict) else type(value).__name__
                raise InputError(f"{where} must have the keys {list(self.keys)}, got {found}")
            items = [value[key] for key in self.keys]
        else:
            if not isinstance(value, tuple | list) or len(value) != len(self.children):
                given = len(value) if isinstance(value, tuple | list) else type(value).__name__
                raise InputError(f"{where} must have {len(self.children)} items, got {given}")
            items = list(value)
        labels: Sequence[Any] = self.keys or range(len(items))
        return [
            leaf
            for child, item, label in zip(self.children, items, labels, strict=True)
            for leaf in child.flatten(item, f"{where}[{label!r}]")
        ]

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """The value of this structure that has these leaves."""
        return self._build(iter(leaves))

    def _build(self, leaves: Iterator[Any]) -> Any:
        if self.kind == "leaf":
            return next(leaves)
        if self.kind == "constant":
            return self.value
        items = [child._build(leaves) for child in self.children]
        if self.kind == "dict":
            return dict(zip(self.keys, items, strict=True))
        return tuple(items) if self.kind == "tuple" else items

    def text(self, names: Sequence[str]) -> str:
        """As in Python, with `names` for the leaves."""
        return self._text(iter(names))

    def _text(self, names: Iterator[str]) -> str:
        if self.kind == "leaf":
            return next(names)
        if self.kind == "constant":
            return json.dumps(self.value) if isinstance(self.value, str) else repr(self.value)
        items = [child._text(names) for child in self.children]
        if self.kind == "dict":
            return "{" + ", ".join(f"{json.dumps(k)}: {item}" for k, item in zip(self.keys, items, strict=True)) + "}"
        if self.kind == "list":
            return "[" + ", ".join(items) + "]"
        return "(" + ", ".join(items) + ("," if len(items) == 1 else "") + ")"

    def to_json(self) -> Any:
        if self.kind == "leaf":
            return "leaf"
        if self.kind == "constant":
            return {"constant": self.value}
        children = [child.to_json() for child in self.children]
        return {"dict": list(zip(self.keys, children, strict=True))} if self.kind == "dict" else {self.kind: children}

    @staticmethod
    def from_json(data: Any) -> Structure:
        if data == "leaf":
            return Structure("leaf")
        ((kind, content),) = data.items()
        if kind == "constant":
            return Structure("constant", value=content)
        if kind == "dict":
            return Structure("dict", tuple(Structure.from_json(c) for _, c in content), tuple(k for k, _ in content))
        return Structure(kind, tuple(Structure.from_json(child) for child in content))
