"""Graph to text."""

from __future__ import annotations

import hashlib
import json
import operator
import re
from typing import Any

import sympy
import torch
from torch import fx
from torch.utils.weak import WeakTensorKeyDictionary

from graphc.graph import Graph
from graphc.sizes import size_text
from graphc.tensor_type import DTYPE_NAMES, NodeType

_NAME = re.compile(r"[\w.-]+")  # a graph's name that needs no quotes
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
