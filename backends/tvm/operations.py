"""One way to name an operator and to read its arguments, for every table of this backend.

An operator with several results is one operation a result: `aten.max.dim#1` is the index that `max` gives, and its
node is the `getitem` that reads it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from graphc.tensor_type import Size, TensorType

# torch dtype -> TVM's name of the type in expressions; booleans are stored as bytes.
TVM_DTYPES = {
    torch.float64: "float64",
    torch.float32: "float32",
    torch.float16: "float16",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.int16: "int16",
    torch.int8: "int8",
    torch.uint8: "uint8",
    torch.bool: "bool",
    torch.bfloat16: "uint16",
}

# bfloat16 travels as its bits, for which the IR has no other use.
BFLOAT16 = TVM_DTYPES[torch.bfloat16]

# Operators whose results are parts of their input, all alike.
SPLITS = ("aten.unbind.int", "aten.split.Tensor", "aten.chunk.default", "aten.split_with_sizes.default")


def name_of(node: fx.Node) -> str:
    """`aten.add.Tensor`, `aten.max.dim#1` for the getitem that reads a result, `aten.split.Tensor#` for any part."""
    if node.target is operator.getitem:
        source, index = node.args
        name = str(source.target)  # type: ignore[union-attr]
        return f"{name}#" if name in SPLITS else f"{name}#{index}"
    return str(node.target)


def arguments(node: fx.Node) -> dict[str, Any]:
    """The operator's arguments by their schema names, defaults filled in. A getitem has its source's arguments."""
    if node.target is operator.getitem:
        node = node.args[0]  # type: ignore[assignment]
    bound = dict(node.kwargs)
    for position, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        else:
            bound.setdefault(argument.name, argument.default_value)
    return bound


def operands(node: fx.Node) -> list[fx.Node]:
    """The values that the node computes from: a getitem stands for its source."""
    if node.target is operator.getitem:
        return operands(node.args[0])  # type: ignore[arg-type]
    return node.all_input_nodes


def consumers(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that compute from `node`, each getitem in place of the operator that it reads."""
    for user in node.users:
        if isinstance(user.meta.get("type"), tuple):
            yield from user.users
        else:
            yield user


def is_stored(node: fx.Node) -> bool:
    """Whether the value depends on weights alone."""
    return node.op == "get_attr" or (
        node.op == "call_function" and bool(operands(node)) and all(is_stored(value) for value in operands(node))
    )


def type_of(node: fx.Node) -> TensorType:
    """The type of a node with one result."""
    kind = node.meta["type"]
    if not isinstance(kind, TensorType):
        raise TypeError(f"%{node.name} has several results")
    return kind


def subject(args: dict[str, Any]) -> fx.Node:
    """The tensor that an operator works on: schemas call it self, input or x."""
    return next(args[name] for name in ("self", "input", "x") if name in args)  # type: ignore[no-any-return]


def shape_of(node: fx.Node) -> tuple[Size, ...]:
    return type_of(node).shape


def rank_of(node: fx.Node) -> int:
    return len(type_of(node).shape)


def widened(node: fx.Node) -> fx.Node | None:
    """The bfloat16 value that a node converts to float32; None where it does something else."""
    if str(node.target) != "aten._to_copy.default" or dtype_of(node) != "float32":
        return None
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    return source if dtype_of(source) == BFLOAT16 else None


def narrow_operands(*nodes: fx.Node) -> tuple[fx.Node, ...]:
    """The bfloat16 values behind operands that are all converted from such ones, else the operands themselves."""
    sources = [source for node in nodes if (source := widened(node)) is not None]
    return tuple(sources) if len(sources) == len(nodes) else nodes


def dtype_of(node: fx.Node) -> str:
    """TVM's name of the node's dtype."""
    return TVM_DTYPES[type_of(node).dtype]
