"""The type of an operator's result, from torch's own shape rules run on tensors without data."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import sympy
import torch
from torch import fx

import graphc.operators  # noqa: F401  (registers torch.ops.graphc)
from graphc.errors import VerificationError
from graphc.tensor_type import NodeType, SymbolRange, TensorType

_KNOWN: dict[Hashable, Any] = {}


def infer(node: fx.Node, symbols: Mapping[str, SymbolRange]) -> NodeType:
    """The type of a call_function node, from the types of its arguments. Raises VerificationError where none fits.

    symbols: the graph's; the shape rules use their ranges (512 rows cut at a size of at most 256 are that size).
    Results are cached by operator and argument types, so that large graphs verify quickly.
    """
    key = (node.target, _signature(node.args), _signature(node.kwargs), tuple(symbols.items()))
    if key not in _KNOWN:
        _KNOWN[key] = _item(node) if node.target is operator.getitem else _infer(node, symbols)
    result: NodeType = _KNOWN[key]
    return result


def _signature(argument: Any) -> Hashable:
    if isinstance(argument, fx.Node):
        return ("node", argument.meta["type"])
    if isinstance(argument, tuple | list):
        return tuple(_signature(item) for item in argument)
    if isinstance(argument, dict):
        return tuple((name, _signature(item)) for name, item in argument.items())
    return (type(argument), argument)


def _item(node: fx.Node) -> TensorType:
    source, index = node.args if len(node.args) == 2 else (None, None)
    types = source.meta["type"] if isinstance(source, fx.Node) else None
    if not isinstance(types, tuple) or type(index) is not int or not 0 <= index < len(types):
        raise VerificationError(f"%{node.name} picks result {index} of {source}, which has no such result")
    result: TensorType = types[index]
    return result


class _Sizes:
    """Concrete sizes as they are; symbolic ones as torch.SymInt of a shape environment made for one inference."""

    def __init__(self, node: fx.Node, ranges: Mapping[str, SymbolRange]) -> None:
        symbols = sorted({known for size in _sizes((node.args, node.kwargs)) for known in size.free_symbols}, key=str)
        undeclared = [str(known) for known in symbols if known.name not in ranges]
        if undeclared:
            raise VerificationError(f"%{node.name} uses the undeclared size '{undeclared[0]}'")
        self.mode: AbstractContextManager[Any] = nullcontext()
        self.dispatcher: AbstractContextManager[Any] = nullcontext()
        # Plain meta tensors are a hundred times cheaper; only fake tensors know symbolic sizes in every operator.
        self.device = torch.device("cpu" if symbols else "meta")
        # Where a shape rule must look at a size it sees one near the maximum, different for each symbol.
        self.hints = {
            known: max(ranges[known.name].maximum - place, ranges[known.name].minimum)
            for place, known in enumerate(symbols, 1)
        }
        self.outward: dict[sympy.Symbol, sympy.Symbol] = {}
        if symbols:
            from torch._dispatch.python import enable_python_dispatcher
            from torch._dynamo.source import ConstantSource
            from torch._subclasses.fake_tensor import FakeTensorMode
            from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StrictMinMaxConstraint
            from torch.utils._sympy.value_ranges import ValueRanges

            self.environment = ShapeEnv()
            self.mode = FakeTensorMode(shape_env=self.environment)
            self.dispatcher = enable_python_dispatcher()  # composites in Python, where sizes stay symbolic
            # torch names the sizes in its own way: translated on the way in and on the way out.
            self.inward = {
                known: self.environment.create_symbol(
                    hint,
                    ConstantSource(str(known)),
                    DimDynamic.DYNAMIC,
                    StrictMinMaxConstraint(
                        vr=ValueRanges(ranges[known.name].minimum, ranges[known.name].maximum), warn_only=False
                    ),
                    do_not_specialize_zero_one=True,
                )
                for known, hint in self.hints.items()
            }
            self.outward = {own: known for known, own in self.inward.items()}

    def enter(self, argument: Any) -> Any:
        """An argument with sizes for expressions and empty tensors for nodes."""
        return _enter(argument, self._size, self.device)

    def _size(self, size: sympy.Expr) -> Any:
        return self.environment.create_symintnode(size.subs(self.inward), hint=int(size.subs(self.hints)))

    def leave(self, tensor: torch.Tensor) -> TensorType:
        """The type of a result, in the graph's symbols."""
        kind = TensorType.of(tensor)
        return TensorType(tuple(s if isinstance(s, int) else s.subs(self.outward) for s in kind.shape), kind.dtype)


def _enter(argument: Any, size: Callable[[sympy.Expr], Any], device: torch.device) -> Any:
    if isinstance(argument, fx.Node):
        types = argument.meta["type"]
        empties = [
            torch.empty(_enter(kind.shape, size, device), dtype=kind.dtype, device=device)
            for kind in (types if isinstance(types, tuple) else (types,))
        ]
        return tuple(empties) if isinstance(types, tuple) else empties[0]
    if isinstance(argument, sympy.Expr):
        return size(argument)
    if isinstance(argument, tuple | list):
        return type(argument)(_enter(item, size, device) for item in argument)
    if isinstance(argument, dict):
        return {key: _enter(item, size, device) for key, item in argument.items()}
    return device if isinstance(argument, torch.device) else argument


def _check_ends(node: fx.Node, found: Any, symbols: Mapping[sympy.Symbol, SymbolRange]) -> None:
    """Raise ValueError where a type over dynamic sizes is wrong at the least or the greatest of them.

    The shape rule looked at sizes near the maximum; the first rows of a batch, say, are fewer where the batch is small.
    """
    meta = torch.device("meta")
    for end in ("minimum", "maximum"):
        values = {known: getattr(allowed, end) for known, allowed in symbols.items()}
        number = partial(_number, values)
        args, kwargs = _enter(node.args, number, meta), _enter(dict(node.kwargs), number, meta)
        real = node.target(*args, **kwargs)  # type: ignore[operator]
        several = isinstance(found, tuple)
        for kind, tensor in zip(*((x if isinstance(x, tuple | list) else (x,)) for x in (found, real)), strict=True):
            if several and all(isinstance(size, int) for size in kind.shape):
                continue  # what a normalization gives besides its result has other sizes on other devices
            shape = tuple(size if isinstance(size, int) else number(size) for size in kind.shape)
            if shape != tuple(tensor.shape):
                where = ", ".join(f"{known} = {value}" for known, value in values.items())
                raise ValueError(f"the result is {kind}, but where {where} its shape is {tuple(tensor.shape)}")


def _number(values: Mapping[sympy.Symbol, int], size: sympy.Expr) -> int:
    return int(size.subs(values))


def _infer(node: fx.Node, symbols: Mapping[str, SymbolRange]) -> NodeType:
    sizes = _Sizes(node, symbols)
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.CRITICAL)  # torch logs a traceback before it raises
        with sizes.mode, sizes.dispatcher:
            value = node.target(*sizes.enter(node.args), **sizes.enter(dict(node.kwargs)))  # type: ignore[operator]
        several = not isinstance(value, torch.Tensor)
        found: NodeType = tuple(sizes.leave(item) for item in value) if several else sizes.leave(value)
        if sizes.outward:
            _check_ends(node, found, {known: symbols[known.name] for known in sizes.outward.values()})
    except Exception as error:
        where = f" (layer '{node.meta.get('path')}')" if node.meta.get("path") else ""
        types = ", ".join(f"%{used.name}: {used.meta['type']}" for used in node.all_input_nodes)
        raise VerificationError(f"%{node.name} = {node.target}{where} cannot take {types}: {error}") from error
    finally:
        logging.disable(disabled)
    return found


def _sizes(argument: Any) -> Iterator[sympy.Expr]:
    """Symbolic sizes among arguments and in the shapes of argument nodes."""
    if isinstance(argument, fx.Node):
        types = argument.meta["type"]
        for kind in types if isinstance(types, tuple) else (types,):
            yield from _sizes(kind.shape)
    elif isinstance(argument, sympy.Expr):
        yield argument
    elif isinstance(argument, tuple | list):
        for item in argument:
            yield from _sizes(item)
    elif isinstance(argument, dict):
        yield from _sizes(list(argument.values()))
