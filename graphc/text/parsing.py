"""Text to Graph."""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from graphc.errors import ParseError
from graphc.graph import Graph
from graphc.sizes import parse_size
from graphc.structure import Structure
from graphc.tensor_type import DTYPES, NodeType, SymbolRange, TensorType
from graphc.text.printing import digest

_TOKEN = re.compile(
    r"""\s*(?:(?P<node>%[\w.]+)|(?P<string>"(?:[^"\\]|\\.)*")|(?P<size>\{[^}]*\})
    |(?P<number>[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|inf|nan)(?![\w.]))|(?P<name>[A-Za-z_][\w.:]*)|(?P<mark>[\[\](),=:@#]))""",
    re.VERBOSE,
)
_LINE = re.compile(r"\s*%(?P<name>\w+) = (?P<body>.*) : (?P<type>[^:@=\"]+?)(?: @(?P<path>\"(?:[^\"\\]|\\.)*\"))?"
                   r"(?: group=(?P<group>\d+))?\s*$")  # fmt: skip
_WEIGHT = re.compile(r'weight (?P<name>"(?:[^"\\]|\\.)*") #(?P<digest>[0-9a-f]{16})$')
_HEADER = re.compile(r'\s*graph (?P<name>[\w.-]+|"(?:[^"\\]|\\.)*")(?P<inputs>\(.*\)) \{\s*$')
_SYMBOL = re.compile(r"\s*symbol (?P<name>\w+) in \[(?P<minimum>\d+), (?P<maximum>\d+)\]\s*$")
_CONSTANTS: dict[str, Any] = {
    "None": None, "True": True, "False": False, **DTYPES,
    **{f"memory_format.{name}": getattr(torch, name)
       for name in ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d")},
    "layout.strided": torch.strided,
    "device.cpu": torch.device("cpu"),
}  # fmt: skip


def parse(text: str, weights: Mapping[str, torch.Tensor]) -> Graph:
    """The graph of a text; `weights` holds at least the tensors that it names.

    Raises ParseError with the line and a caret, also where a weight is missing or differs from its digest.
    """
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if _holds_code(line)]
    if not lines or lines[-1][1].strip() != "}":
        raise ParseError("the text ends before the graph's closing '}'")
    with _located(*lines[0]):
        header = _match(_HEADER, lines[0][1], "expected 'graph NAME(inputs) {'")
        name = header["name"]
        graph = Graph(json.loads(name) if name.startswith('"') else name, Structure("leaf"), Structure("leaf"))
    nodes: dict[str, fx.Node] = {}
    for number, line in lines[1:-1]:
        with _located(number, line):
            _line(graph, line, nodes, weights)
    with _located(*lines[-1]):
        if [node for node in graph if node.op == "output"] != [graph.output]:
            raise ParseError("a graph ends with its only 'return'")
    with _located(*lines[0]):
        graph.inputs, leaves = _Reader(lines[0][1], header.start("inputs"), header.end("inputs"), nodes).structure()
        if leaves != graph.placeholders:
            raise ParseError("the inputs must be those of the 'input' lines, in their order")
    return graph


def _holds_code(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("//")


@contextmanager
def _located(number: int, line: str) -> Iterator[None]:
    """Errors in this block quote the line, with a caret."""
    try:
        yield
    except (ParseError, ValueError, RecursionError) as error:  # ValueError: strings that are no JSON, endless numbers
        column = getattr(error, "column", 0) or len(line) - len(line.lstrip())
        raise ParseError(f"line {number}: {error}", line, number, column) from None


def _line(graph: Graph, line: str, nodes: dict[str, fx.Node], weights: Mapping[str, torch.Tensor]) -> None:
    stripped = line.strip()
    if stripped.startswith("symbol "):
        found = _match(_SYMBOL, line, "expected 'symbol NAME in [MINIMUM, MAXIMUM]'")
        graph.symbols[found["name"]] = SymbolRange(int(found["minimum"]), int(found["maximum"]))
    elif stripped.startswith("return "):
        start = line.index("return ") + len("return ")
        graph.outputs, results = _Reader(line, start, len(line), nodes).structure()
        graph.set_output(results)
    else:
        found = _match(_LINE, line, "expected '%NAME = OPERATOR(arguments) : TYPE'")
        if found["name"] in nodes:
            raise ParseError(f"%{found['name']} is defined twice")
        nodes[found["name"]] = _node(graph, line, found, nodes, weights)


def _match(pattern: re.Pattern[str], line: str, expected: str) -> re.Match[str]:
    found = pattern.match(line)
    if found is None:
        raise ParseError(expected)
    return found


def _node(
    graph: Graph, line: str, found: re.Match[str], nodes: Mapping[str, fx.Node], weights: Mapping[str, torch.Tensor]
) -> fx.Node:
    name, body = found["name"], found["body"]
    if body == "input":
        node = graph.fx.create_node("placeholder", name, name=name)
    elif body.startswith("weight "):
        weight = _match(_WEIGHT, body, "expected 'weight \"NAME\" #DIGEST'")
        target = json.loads(weight["name"])
        if target not in weights:
            raise ParseError(f"there is no weight '{target}' beside this text")
        if digest(weights[target]) != weight["digest"]:
            raise ParseError(
                f"weight '{target}' has digest {digest(weights[target])}, the text says {weight['digest']}"
            )
        graph.weights[target] = weights[target]
        node = graph.fx.create_node("get_attr", target, name=name)
    else:
        target_name, _, _ = body.partition("(")
        start = found.start("body")
        target = _at(start, resolve, target_name)
        args, kwargs = _Reader(line, start + len(target_name), found.end("body"), nodes).arguments()
        node = graph.fx.create_node("call_function", target, args, kwargs, name=name)
    node.name = name
    group = found["group"]
    node.meta.update(
        type=_at(found.start("type"), _parse_type, found["type"]),
        path=json.loads(found["path"]) if found["path"] else "",
        group=int(group) if group else None,
    )
    return node


def _at(column: int, read: Callable[[str], Any], text: str) -> Any:
    """`read(text)`, its errors at this column."""
    try:
        return read(text)
    except ParseError as error:
        error.column = column
        raise


def resolve(name: str) -> Any:
    """The operator of a printed name, such as "aten.relu.default". Raises ParseError."""
    if name == "getitem":
        return operator.getitem
    import graphc.operators  # noqa: F401  (registers torch.ops.graphc)

    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    try:
        found = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    except (AttributeError, RuntimeError):  # RuntimeError: a name that no operator can have
        found = None
    if not isinstance(found, OpOverload) or str(found) != name:
        raise ParseError(f"there is no operator '{name}'")
    return found


@cache
def _parse_type(text: str) -> NodeType:
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        return tuple(_parse_one_type(item) for item in _split(text[1:-1]))
    return _parse_one_type(text)


def _parse_one_type(text: str) -> TensorType:
    name, _, sizes = text.strip().partition("[")
    if name not in DTYPES or not sizes.endswith("]"):
        raise ParseError(f"'{text}' is no type; expected one like f32[1, 3] with a dtype of {', '.join(DTYPES)}")
    return TensorType(tuple(parse_size(size) for size in _split(sizes[:-1])), DTYPES[name])


def _split(text: str) -> list[str]:
    """The items between those commas that stand outside of brackets."""
    items, depth = [""], 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            items.append("")
        else:
            items[-1] += char
    return items if text.strip() else []


class _Reader:
    """Values from the piece [start, stop) of a line, token by token."""

    def __init__(self, line: str, start: int, stop: int, nodes: Mapping[str, fx.Node]) -> None:
        self._line = line
        self._at = start
        self._stop = stop
        self._nodes = nodes
        self._leaves: list[fx.Node] = []

    def _wrong(self, message: str, at: int | None = None) -> ParseError:
        blank = len(self._line[self._at : self._stop]) - len(self._line[self._at : self._stop].lstrip())
        return ParseError(message, column=self._at + blank if at is None else at)

    def _rest(self) -> str:
        return self._line[self._at : self._stop].strip()

    def _match(self) -> re.Match[str] | None:
        return _TOKEN.match(self._line, self._at, self._stop)

    def _next(self) -> tuple[str, str]:
        found = self._match()
        if found is None:
            raise self._wrong(f"cannot read '{self._rest()}'")
        self._at = found.end()
        kind = str(found.lastgroup)
        return kind, found[kind]

    def _accept(self, mark: str) -> bool:
        found = self._match()
        if found is not None and found["mark"] == mark:
            self._at = found.end()
            return True
        return False

    def _expect(self, mark: str) -> None:
        if not self._accept(mark):
            raise self._wrong(f"expected '{mark}' before '{self._rest()}'")

    def _end(self) -> None:
        if self._rest():
            raise self._wrong(f"did not expect '{self._rest()}'")

    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        self._expect("(")
        while not self._accept(")"):
            kind, token = self._next()
            if kind == "name" and token not in _CONSTANTS and self._accept("="):
                kwargs[token] = self._value(*self._next())
            else:
                args.append(self._value(kind, token))
            if not self._accept(","):
                self._expect(")")
                break
        self._end()
        return tuple(args), kwargs

    def _value(self, kind: str, token: str) -> Any:
        if kind == "node":
            if token[1:] not in self._nodes:
                raise self._wrong(f"{token} is used before it is defined", self._at - len(token))
            return self._nodes[token[1:]]
        if kind == "string":
            return json.loads(token)
        if kind == "size":
            return _at(self._at - len(token), parse_size, token[1:-1])
        if kind == "number":
            return int(token) if re.fullmatch(r"[-+]?\d+", token) else float(token)
        if kind == "name" and token in _CONSTANTS:
            return _CONSTANTS[token]
        if kind == "name" and token in ("inf", "nan"):
            return math.inf if token == "inf" else math.nan
        if token == "[":
            items: list[Any] = []
            while not self._accept("]"):
                items.append(self._value(*self._next()))
                if not self._accept(","):
                    self._expect("]")
                    break
            return items
        raise self._wrong(f"'{token}' is no value", self._at - len(token))

    def structure(self) -> tuple[Structure, list[fx.Node]]:
        """A nested structure of nodes and constants, and the nodes in order."""
        found = self._structure()
        self._end()
        return found, self._leaves

    def _structure(self) -> Structure:
        for open_mark, close_mark, kind in (("(", ")", "tuple"), ("[", "]", "list")):
            if self._accept(open_mark):
                children: list[Structure] = []
                while not self._accept(close_mark):
                    children.append(self._structure())
                    if not self._accept(","):
                        self._expect(close_mark)
                        break
                return Structure(kind, tuple(children))
        if self._rest().startswith("{"):
            return self._dictionary()
        kind, token = self._next()
        value = self._value(kind, token)
        if isinstance(value, fx.Node):
            self._leaves.append(value)
            return Structure("leaf")
        return Structure("constant", value=value)

    def _dictionary(self) -> Structure:
        self._at = self._line.index("{", self._at) + 1
        keys: list[str | int] = []
        children: list[Structure] = []
        while not self._rest().startswith("}"):
            if keys:
                self._expect(",")
            kind, token = self._next()
            if kind not in ("string", "number"):
                raise self._wrong(f"'{token}' is no key", self._at - len(token))
            keys.append(json.loads(token) if kind == "string" else int(token))
            self._expect(":")
            children.append(self._structure())
        self._at = self._line.index("}", self._at) + 1
        return Structure("dict", tuple(children), tuple(keys))
