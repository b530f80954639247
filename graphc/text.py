"""The text form of a Graph: `dump` and `parse` are inverses.

    graph      := "graph" (NAME | STRING) inputs "{" line* "return" outputs "}"
    line       := "symbol" NAME "in" "[" INT "," INT "]"
                | "%"NAME "=" "input" ":" type
                | "%"NAME "=" "weight" STRING "#"DIGEST ":" type suffix
                | "%"NAME "=" OPERATOR "(" argument ("," argument)* ")" ":" type suffix
    suffix     := ("@" STRING)? ("group=" INT)?
    type       := DTYPE "[" size ("," size)* "]" | "(" type ("," type)* ")"
    size       := INT | an expression over the symbols
    argument   := (NAME "=")? value
    value      := "%"NAME | INT | FLOAT | STRING | None | True | False | "[" value* "]" | "{" size "}" | DTYPE
                | memory_format.NAME | layout.NAME | device.NAME

`inputs` is the call's pair (args, kwargs) as Python writes it, `outputs` the result's structure. One line a node, the
model's own names: a diff of two dumps shows the change alone. Lines that start with "//" are comments. Weights are
named with the digest of their contents; the tensors themselves are handed to `parse`, or lie beside the text in a
content-addressed folder (`save`, `read`).
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import sympy
import torch
from torch import fx
from torch._ops import OpOverload
from torch.utils.weak import WeakTensorKeyDictionary

from graphc.errors import ParseError
from graphc.graph import Graph
from graphc.sizes import parse_size, size_text
from graphc.structure import Structure
from graphc.tensor_type import DTYPE_NAMES, DTYPES, NodeType, SymbolRange, TensorType

_DIGESTS = WeakTensorKeyDictionary()


def digest(tensor: torch.Tensor) -> str:
    """Sixteen hexadecimal digits of SHA-256 over dtype, shape and contents."""
    known = _DIGESTS.get(tensor)
    if known is None:
        plain = tensor.detach().cpu().contiguous()
        header = f"{DTYPE_NAMES[plain.dtype]}{tuple(plain.shape)}".encode()
        known = hashlib.sha256(header + plain.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        _DIGESTS[tensor] = known
    return str(known)


# -- dump ----------------------------------------------------------------------------------------


def dump(graph: Graph) -> str:
    """The text form of a graph.

    >>> graphc.parse(graphc.dump(graph), graph.weights)
    """
    name = graph.name if _NAME.fullmatch(graph.name) else json.dumps(graph.name)
    lines = [f"graph {name}{graph.inputs.text([f'%{node.name}' for node in graph.placeholders])} {{"]
    lines += [f"  symbol {name} in [{r.minimum}, {r.maximum}]" for name, r in sorted(graph.symbols.items())]
    for node in graph:
        if node.op == "output":
            results = graph.outputs.text([f"%{result.name}" for result in node.args[0]])  # type: ignore[union-attr]
            lines.append(f"  return {results}")
        else:
            lines.append(f"  %{node.name} = {_body(graph, node)} : {_type(node.meta['type'])}{_suffix(node)}")
    return "\n".join([*lines, "}", ""])


def _body(graph: Graph, node: fx.Node) -> str:
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        return f"weight {json.dumps(node.target)} #{digest(graph.weights[str(node.target)])}"
    arguments = [_value(argument) for argument in node.args]
    arguments += [f"{key}={_value(value)}" for key, value in sorted(node.kwargs.items())]
    return f"{_operator_name(node.target)}({', '.join(arguments)})"


def _operator_name(target: Any) -> str:
    return "getitem" if target is operator.getitem else str(target)


def _type(kind: NodeType) -> str:
    if isinstance(kind, tuple):
        return f"({', '.join(_type(item) for item in kind)})"
    return f"{DTYPE_NAMES[kind.dtype]}[{', '.join(size_text(size) for size in kind.shape)}]"


def _suffix(node: fx.Node) -> str:
    path = f" @{json.dumps(node.meta['path'])}" if node.meta.get("path") else ""
    return path + (f" group={node.meta['group']}" if node.meta.get("group") is not None else "")


def _value(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, bool) or value is None:
        return repr(value)
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(_value(item) for item in value)}]"
    if isinstance(value, torch.dtype):
        return DTYPE_NAMES[value]
    if isinstance(value, torch.memory_format):
        return f"memory_format.{str(value).rpartition('.')[2]}"
    if isinstance(value, torch.layout):
        return f"layout.{str(value).rpartition('.')[2]}"
    if isinstance(value, torch.device):
        return f"device.{value.type}"
    if isinstance(value, sympy.Expr):
        return f"{{{size_text(value)}}}"
    raise TypeError(f"an operator's argument of type {type(value).__name__} has no text form")


# -- parse ---------------------------------------------------------------------------------------

_NAME = re.compile(r"[\w.-]+")
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


# -- files ---------------------------------------------------------------------------------------


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write the text to `path` and each tensor once to `weights/<digest>.safetensors` beside it."""
    from safetensors.torch import save_file

    path = Path(path)
    folder = path.parent / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    for tensor in graph.weights.values():
        file = folder / f"{digest(tensor)}.safetensors"
        if not file.exists():
            beside = file.with_suffix(".part")
            save_file({"tensor": tensor.detach().contiguous().clone()}, beside)
            beside.rename(file)
    beside = path.with_suffix(".part")
    beside.write_text(dump(graph))
    beside.rename(path)


def read(path: str | os.PathLike[str]) -> Graph:
    """The graph that `save` wrote."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        raise ParseError(f"'{path.name}' is no text") from None
    weights: dict[str, torch.Tensor] = {}
    for name, number in re.findall(r'= weight ("(?:[^"\\]|\\.)*") #([0-9a-f]{16}) :', text):
        file = path.parent / "weights" / f"{number}.safetensors"
        if not file.exists():
            raise ParseError(
                f"'{path.name}' needs the weight {name} in 'weights/{number}.safetensors', which is absent"
            )
        try:
            weights[json.loads(name)] = load_file(file)["tensor"]
        except (SafetensorError, KeyError) as error:
            raise ParseError(f"cannot read 'weights/{file.name}' beside '{path.name}': {error}") from None
    return parse(text, weights)
