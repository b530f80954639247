"""The IR: a functional torch.fx graph of ATen and graphc operators, with shapes, types and provenance on every node.

A Graph holds
  fx        the nodes: placeholder (inputs), get_attr (weights), call_function (operators), output
  weights   name -> tensor, the targets of get_attr nodes; shared between graphs and never written to
  symbols   name -> range, the dynamic sizes that the user declared
  inputs, outputs   the structure of the call: nested tuples, lists and dicts around the flat nodes

Each node's meta holds
  type      TensorType, or a tuple of them for an operator with several results (read through operator.getitem)
  path      the user's module path, such as "layer1.0.conv1" ("" where there is none)
  group     number of the fused group that the node belongs to, None before fusion
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, count
from typing import Any

import sympy
import torch
from torch import fx

from graphc.errors import InputError
from graphc.operators.inference import infer
from graphc.structure import Structure
from graphc.tensor_type import SymbolRange, TensorType, evaluate


def _max_pool2d(values: torch.Tensor, *geometry: Any, **named: Any) -> torch.Tensor:
    if not values.is_floating_point():
        values = values.contiguous()  # channels last, torch counts what a plane holds in the values' own type
    result: torch.Tensor = torch.ops.aten.max_pool2d.default(values, *geometry, **named)
    return result


# How torch computes what else it would refuse for its strides, which are no part of the IR.
_STRIDED: dict[Any, Callable[..., torch.Tensor]] = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten.max_pool2d.default: _max_pool2d,
}


class Graph:
    """One model: nodes, weights, dynamic sizes, and the structure of its call. See the module's docstring."""

    def __init__(
        self,
        name: str,
        inputs: Structure,
        outputs: Structure,
        weights: Mapping[str, torch.Tensor] | None = None,
        symbols: Mapping[str, SymbolRange] | None = None,
    ) -> None:
        self.name = name
        self.fx = fx.Graph()
        self.inputs = inputs
        self.outputs = outputs
        self.weights: dict[str, torch.Tensor] = dict(weights or {})
        self.symbols: dict[str, SymbolRange] = dict(symbols or {})
        self._path = ""

    # -- reading ---------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[fx.Node]:
        return iter(self.fx.nodes)

    @property
    def placeholders(self) -> list[fx.Node]:
        return [node for node in self.fx.nodes if node.op == "placeholder"]

    @property
    def calls(self) -> list[fx.Node]:
        return [node for node in self.fx.nodes if node.op == "call_function"]

    @property
    def output(self) -> fx.Node:
        """The output node; `output.args[0]` is the flat tuple of results."""
        last: fx.Node = next(iter(reversed(self.fx.nodes)))
        return last

    def weight(self, node: Any) -> torch.Tensor | None:
        """The tensor that a get_attr node reads, None for anything else."""
        if isinstance(node, fx.Node) and node.op == "get_attr":
            return self.weights[str(node.target)]
        return None

    # -- building --------------------------------------------------------------------------------

    def add_input(self, name: str, type: TensorType) -> fx.Node:
        node = self.fx.placeholder(name)
        node.meta.update(type=type, path="", group=None)
        return node

    def add_weight(self, name: str, tensor: torch.Tensor, path: str | None = None) -> fx.Node:
        """A get_attr node for `tensor`, stored under `name` (made unique where another tensor has that name)."""
        unique, suffix = name, 0
        while unique in self.weights and self.weights[unique] is not tensor:
            suffix += 1
            unique = f"{name}.{suffix}"
        self.weights[unique] = tensor
        node = self.fx.create_node("get_attr", unique, name=identifier(unique))
        node.meta.update(type=TensorType.of(tensor), path=self._path if path is None else path, group=None)
        return node

    def call(self, target: Callable[..., Any] | str, *args: Any, name: str | None = None, **kwargs: Any) -> fx.Node:
        """Append an operator at the insertion point; its type comes from the operator's shape rule.

        The provenance is that of the `at(node)` block around the call.
        """
        node = self.fx.create_node("call_function", target, args, kwargs, name=name)
        node.meta.update(path=self._path, group=None)
        node.meta["type"] = infer(node, self.symbols)
        return node

    @contextmanager
    def at(self, node: fx.Node, path: str | None = None) -> Iterator[None]:
        """Insert before `node`, with its provenance or that of `path`."""
        previous, self._path = self._path, node.meta.get("path", "") if path is None else path
        try:
            with self.fx.inserting_before(node):
                yield
        finally:
            self._path = previous

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let all users of `old` use `new`, and drop `old`; a new operator takes over its name."""
        fresh = not new.users and new.op == "call_function"
        old.replace_all_uses_with(new)
        self.fx.erase_node(old)
        if fresh:
            new.name = old.name

    def rename(self, node: fx.Node, name: str) -> None:
        """Name a node; a number is added where another node has that name."""
        taken = {other.name for other in self.fx.nodes if other is not node}
        node.name = next(text for text in chain([name], (f"{name}_{i}" for i in count(1))) if text not in taken)

    def set_output(self, results: Sequence[fx.Node]) -> None:
        node = self.fx.output(tuple(results))
        node.meta.update(path="", group=None)

    def drop_unused(self) -> bool:
        """Remove operators and weights that no result depends on; inputs stay. True where anything went."""
        changed = False
        for node in reversed(list(self.fx.nodes)):
            if node.op in ("call_function", "get_attr") and not node.users:
                self.fx.erase_node(node)
                changed = True
        used = {str(node.target) for node in self.fx.nodes if node.op == "get_attr"}
        changed |= len(used) != len(self.weights)
        self.weights = {name: tensor for name, tensor in self.weights.items() if name in used}
        return changed

    def clone(self) -> Graph:
        """A graph with its own nodes and the same tensors: what a pass works on."""
        other = Graph(self.name, self.inputs, self.outputs, self.weights, self.symbols)
        copies: dict[fx.Node, fx.Node] = {}
        for node in self.fx.nodes:
            copy = other.fx.create_node(
                node.op,
                node.target,
                fx.map_arg(node.args, copies.__getitem__),
                fx.map_arg(node.kwargs, copies.__getitem__),
                name=node.name,
            )
            copy.name = node.name
            copy.meta = dict(node.meta)
            copies[node] = copy
        return other

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its text and weights, so that jobs on other processes and machines can take graphs."""
        from graphc.text import dump, parse

        return parse, (dump(self), self.weights)

    # -- running ---------------------------------------------------------------------------------

    def bind(self, leaves: Sequence[torch.Tensor]) -> dict[sympy.Symbol, int]:
        """Check flat inputs against the declared types and solve for the dynamic sizes.

        Raises InputError that names the input and what would be legal.
        """
        placeholders = self.placeholders
        if len(leaves) != len(placeholders):
            raise InputError(f"{self.name} takes {len(placeholders)} input tensors, got {len(leaves)}")
        sizes: dict[sympy.Symbol, int] = {}
        for node, value in zip(placeholders, leaves, strict=True):
            expected: TensorType = node.meta["type"]
            # Another number of dimensions is told below.
            for size, actual in zip(expected.shape, value.shape, strict=False):
                if isinstance(size, sympy.Symbol):
                    sizes.setdefault(size, int(actual))
        for node, value in zip(placeholders, leaves, strict=True):
            expected = node.meta["type"]
            fits = value.dim() == len(expected.shape) and value.dtype == expected.dtype
            if not fits or tuple(value.shape) != tuple(evaluate(size, sizes) for size in expected.shape):
                raise InputError(f"input '{node.name}' must be {expected}, got {TensorType.of(value)}")
        for known, size in sizes.items():
            allowed = self.symbols[known.name]
            if not allowed.minimum <= size <= allowed.maximum:
                bounds = f"between {allowed.minimum} and {allowed.maximum}"
                raise InputError(f"size '{known}' must lie {bounds}, the inputs make it {size}")
        return sizes

    def run(self, *args: Any, observe: Callable[[fx.Node, Any], None] | None = None, **kwargs: Any) -> Any:
        """Run in PyTorch: the meaning of the graph. `observe(node, value)` sees each operator's result."""
        return self.outputs.unflatten(self.run_flat(self.tensors(self.inputs.flatten_call(args, kwargs)), observe))

    def tensors(self, leaves: Sequence[Any]) -> list[torch.Tensor]:
        """Flat inputs as tensors, from whatever torch makes tensors of. Raises InputError that names the input."""
        found: list[torch.Tensor] = []
        for place, leaf in enumerate(leaves):
            try:
                found.append(torch.as_tensor(leaf))
            except (TypeError, ValueError, RuntimeError) as error:
                names = [node.name for node in self.placeholders]
                name = names[place] if place < len(names) else str(place)
                raise InputError(f"input '{name}' is no tensor, but a {type(leaf).__name__}: {error}") from None
        return found

    def run_flat(
        self, leaves: Sequence[torch.Tensor], observe: Callable[[fx.Node, Any], None] | None = None
    ) -> list[torch.Tensor]:
        """As `run`, over the flat list of inputs. Values are freed after their last use."""
        sizes = self.bind(leaves)
        last_use = {used: node for node in self.fx.nodes for used in node.all_input_nodes}
        values: dict[fx.Node, Any] = dict(zip(self.placeholders, leaves, strict=True))
        for node in self.fx.nodes:
            if node.op == "get_attr":
                values[node] = self.weights[str(node.target)]
            elif node.op == "call_function":
                args, kwargs = concrete((node.args, node.kwargs), values.__getitem__, sizes)
                values[node] = _STRIDED.get(node.target, node.target)(*args, **kwargs)
                if observe is not None:
                    observe(node, values[node])
            elif node.op == "output":
                return [values[result] for result in node.args[0]]
            for used in node.all_input_nodes:
                if last_use[used] is node and used.op == "call_function":
                    values.pop(used, None)
        raise AssertionError("a graph ends with its output node")


def concrete(arguments: Any, value: Callable[[fx.Node], Any], sizes: Mapping[sympy.Symbol, Any]) -> Any:
    """Node arguments with nodes replaced by `value(node)` and symbolic sizes by numbers."""
    if isinstance(arguments, fx.Node):
        return value(arguments)
    if isinstance(arguments, tuple | list):
        return type(arguments)(concrete(item, value, sizes) for item in arguments)
    if isinstance(arguments, dict):
        return {key: concrete(item, value, sizes) for key, item in arguments.items()}
    if isinstance(arguments, sympy.Expr):
        return evaluate(arguments, sizes)
    return arguments


def identifier(name: str) -> str:
    """A node name for a dotted weight or module name."""
    text = "".join(char if char.isalnum() else "_" for char in name)
    return text if text[:1].isalpha() or text[:1] == "_" else f"_{text}"


def arguments(node: fx.Node) -> list[Any]:
    """All arguments of an operator in its schema's order, defaults filled in."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    return [
        node.args[place] if place < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        for place, argument in enumerate(schema)
    ]


def is_item(node: fx.Node) -> bool:
    """Whether the node picks one result of an operator with several."""
    return node.op == "call_function" and node.target is operator.getitem
