"""ONNX out: any Graph as a plain ONNX model, which ONNX Runtime runs as an independent judge.

The Graph is exported by torch.onnx, whose library knows all of ATen; graphc's own operators leave as standard quantized
operators or as model-local functions (see onnx_functions). Nothing is folded: a compressed weight stays compressed.
"""

from __future__ import annotations

import ast
import inspect
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import sympy
import torch
from torch import Tensor, fx, nn
from torch.onnx._internal.exporter._registration import ONNXRegistry
from torch.utils._sympy.interp import sympy_interp
from torch.utils._sympy.reference import PythonReferenceAnalysis

from graphc import __version__
from graphc.errors import Unsupported, UnsupportedOperatorError
from graphc.exporters.onnx_forms import FORMS
from graphc.exporters.onnx_functions import DOMAIN, OPSET, function
from graphc.graph import Graph
from graphc.tensor_type import Size, symbol


def export(graph: Graph, path: str | os.PathLike[str] | None = None) -> onnx.ModelProto:
    """`graph` as an ONNX model of operator set 18; written to `path` where one is given.

    Inputs, weights and dynamic sizes keep their names; a node's name is its layer's path and its operator. Raises
    UnsupportedOperatorError for an operator that torch.onnx cannot express.
    """
    module = _Runnable(graph)
    sizes = {
        name: _example(bounds.minimum, bounds.maximum, i) for i, (name, bounds) in enumerate(graph.symbols.items())
    }
    inputs = [
        torch.zeros([_size(size, sizes) for size in node.meta["type"].shape], dtype=node.meta["type"].dtype)
        for node in graph.placeholders
    ]
    shapes = _dynamic_shapes(graph)
    with _quiet(), torch.no_grad():
        program = torch.export.export(module, tuple(inputs), dynamic_shapes=shapes, strict=False)
        try:
            exported = torch.onnx.export(
                program,
                input_names=[node.name for node in graph.placeholders],
                output_names=_output_names(graph),
                dynamic_shapes=shapes,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise _unsupported(graph, error) from error
    assert exported is not None
    model = exported.model_proto
    _rename(model, module.names)
    model.graph.name, model.producer_name, model.producer_version = graph.name, "graphc", __version__
    used = sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN})
    model.functions.extend(function(name) for name in used)
    onnx.checker.check_model(model)
    if path is not None:
        beside = Path(f"{os.fspath(path)}.part")
        onnx.save(model, beside)
        beside.replace(path)
    return model


class _Layer(nn.Module):
    """Calls of one of the user's layers: torch.onnx notes the module that a node comes from."""

    def forward(self, target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return target(*args, **kwargs)


class _Runnable(nn.Module):
    """Runs a Graph, with ONNX forms in place of graphc's own operators."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph
        self.names: dict[str, str] = {}  # torch's name of a weight -> the graph's
        for index, (name, tensor) in enumerate(graph.weights.items()):
            self.register_buffer(f"weight_{index}", tensor)
            self.names[f"weight_{index}"] = name
        self.stored = {name: short for short, name in self.names.items()}
        for node in graph.calls:
            if node.meta["path"] and node.meta["path"] not in self._modules:
                self._modules[node.meta["path"]] = _Layer()  # not add_module: paths hold dots

        def forward(*inputs: Tensor) -> tuple[Tensor, ...]:
            return self.run(inputs)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        forward.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(node.name, kind) for node in graph.placeholders]
        )
        self.forward = forward

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        values: dict[fx.Node, Any] = dict(zip(self.graph.placeholders, inputs, strict=True))
        sizes: dict[str, Any] = {}
        for node, value in values.items():
            for size, actual in zip(node.meta["type"].shape, value.shape, strict=True):
                if isinstance(size, sympy.Symbol):
                    sizes.setdefault(size.name, actual)
        for node in self.graph:
            if node.op == "get_attr":
                values[node] = getattr(self, self.stored[str(node.target)])
            elif node.op == "call_function":
                args, kwargs = _arguments((node.args, node.kwargs), values, sizes)
                target: Any = node.target
                if target in FORMS:
                    shape = getattr(node.meta["type"], "shape", ())  # none where there are several results
                    target = partial(FORMS[target], [_size(size, sizes) for size in shape])
                layer = self._modules.get(node.meta["path"])
                values[node] = layer(target, args, kwargs) if layer else target(*args, **kwargs)
        return tuple(values[result] for result in self.graph.output.args[0])  # type: ignore[union-attr,index]


def _arguments(argument: Any, values: Mapping[fx.Node, Any], sizes: Mapping[str, Any]) -> Any:
    if isinstance(argument, fx.Node):
        return values[argument]
    if isinstance(argument, sympy.Expr):
        return _size(argument, sizes)
    if isinstance(argument, tuple | list):
        return type(argument)(_arguments(item, values, sizes) for item in argument)
    if isinstance(argument, dict):
        return {key: _arguments(item, values, sizes) for key, item in argument.items()}
    return argument


def _size(size: Size, sizes: Mapping[str, Any]) -> Any:
    """A size with the symbols' values put in, which may themselves be symbolic (torch.SymInt)."""
    if isinstance(size, int):
        return size
    return sympy_interp(PythonReferenceAnalysis, {symbol(name): value for name, value in sizes.items()}, size)


# -- around torch.onnx -------------------------------------------------------------------------------


def _example(low: int, high: int, index: int) -> int:
    """A size within its range, and of its own where that is possible: equal sizes would be taken for one."""
    return min(max(low, 3 + 2 * index), high)


def _dynamic_shapes(graph: Graph) -> tuple[dict[int, Any], ...]:
    dims = {
        name: torch.export.Dim(name, min=bounds.minimum, max=bounds.maximum) for name, bounds in graph.symbols.items()
    }
    return tuple(
        {axis: dims[size.name] for axis, size in enumerate(node.meta["type"].shape) if isinstance(size, sympy.Symbol)}
        for node in graph.placeholders
    )


def _unsupported(graph: Graph, error: BaseException) -> UnsupportedOperatorError:
    """torch.onnx's failure in the graph's terms. It stops at the first operator that it cannot write, and may name one
    that ours decomposes to: then all are listed that it does not know as they are."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = f"{error}{cause}"
    registry = ONNXRegistry.from_torchlib()
    named = [node for node in graph.calls if repr(node.target) in text]
    unknown = [node for node in graph.calls if node.target not in FORMS and not registry.is_registered(node.target)]  # type: ignore[arg-type]
    reason = str(cause).strip().partition("\n")[0]
    found = [Unsupported(node.name, str(node.target), node.meta["path"], reason) for node in named or unknown]
    return UnsupportedOperatorError("ONNX export", found)


def _rename(model: onnx.ModelProto, weights: Mapping[str, str]) -> None:
    """Give weights the graph's names and nodes their layers'; drop torch's notes, which hold paths of this machine."""
    taken = {name for node in model.graph.node for name in (*node.input, *node.output)} - set(weights)
    names: dict[str, str] = {}
    for tensor in model.graph.initializer:
        fresh = weights.get(tensor.name, tensor.name)
        while fresh in taken:
            fresh += "_"
        taken.add(fresh)
        names[tensor.name] = fresh
        tensor.name = fresh
        del tensor.metadata_props[:]
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        scopes = next((note.value for note in node.metadata_props if note.key == "pkg.torch.onnx.name_scopes"), "[]")
        path = next((scope for scope in reversed(ast.literal_eval(scopes)[:-1]) if not scope.startswith("_empty")), "")
        name = f"{path}/{node.op_type}" if path else node.op_type
        node.name = f"{name}_{counts[name]}" if counts[name] else name
        counts[name] += 1
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.name = names.get(value.name, value.name)
        del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own warnings and logs: what matters of them is in the error."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _output_names(graph: Graph) -> list[str]:
    """ "output", or "output_0" and so on, where no input has that name."""
    count = len(graph.output.args[0])  # type: ignore[arg-type]
    names = ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
    taken = {node.name for node in graph.placeholders}
    return [f"{name}_result" if name in taken else name for name in names]
