"""PyTorch in: torch.export, decomposed to Core ATen and a few composites that kernels want whole."""

from __future__ import annotations

import dataclasses
import keyword
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any

import sympy
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from graphc.errors import CaptureError, GraphcError
from graphc.frontends.dynamic_shapes import dimension_names, grown
from graphc.frontends.legality import check_operators, is_check
from graphc.frontends.provenance import explain, module_path
from graphc.graph import Graph
from graphc.operators.inference import infer
from graphc.structure import Structure
from graphc.tensor_type import DTYPE_NAMES, SymbolRange, TensorType, symbol

aten = torch.ops.aten

# Composites that stay whole: one node, one meaning, one kernel.
KEPT = (
    aten.linear.default,
    aten.silu.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.softplus.default,
    aten.layer_norm.default,
    aten.group_norm.default,
    aten.softmax.int,
    aten.log_softmax.int,
    aten.scaled_dot_product_attention.default,
    aten.max_pool2d.default,
    aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
    aten.pixel_shuffle.default,
    aten.prelu.default,
    aten.leaky_relu.default,
    aten.elu.default,
    aten.split.Tensor,
    aten.split_with_sizes.default,
)


def capture(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    name: str | None = None,
) -> Graph:
    """Trace a module in inference mode, non-strict first and then strict.

    args, kwargs: example inputs; only their structure, shapes and dtypes matter. dynamic_shapes: as torch.export takes
    it, with `torch.export.Dim("batch", min=1, max=64)` for each dynamic size. Raises CaptureError.
    """
    args, kwargs = grown(tuple(args), dict(kwargs or {}), dynamic_shapes)
    failures: list[Exception] = []
    with _inference(model), torch.no_grad(), _quiet():
        for strict in (False, True):
            try:
                program = torch.export.export(
                    model, tuple(args), dict(kwargs or {}), dynamic_shapes=dynamic_shapes, strict=strict
                )
                break
            except GraphcError:
                raise
            except Exception as error:
                failures.append(error)
        else:
            raise CaptureError(explain(model, failures)) from failures[0]
    names = dimension_names(program, args, kwargs or {}, dynamic_shapes)
    return from_exported_program(program, name or type(model).__name__, names)


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and back: tracing must not change the user's model."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in training:
            module.training = mode


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's own warnings, logs and prints: what matters of them is in the error."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def from_exported_program(
    program: ExportedProgram, name: str = "model", dimension_names: Mapping[str, str] | None = None
) -> Graph:
    """The Graph of an ExportedProgram. Raises CaptureError for mutation and for inputs that are no tensors."""
    with _quiet():
        program = program.run_decompositions(_decompositions())
    signature = program.graph_signature
    mutated = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if mutated:
        raise CaptureError(
            f"the model writes to {', '.join(repr(item) for item in mutated)} while it runs; graphc compiles pure "
            "functions: return the new state as an output and pass it in again"
        )
    check_operators(program)
    translate = _Symbols(program, dimension_names or {})
    kinds = {spec.arg.name: spec for spec in signature.input_specs}
    stored: dict[Any, str] = {}
    values: dict[fx.Node, Any] = {}
    leaves: list[bool] = []
    constants: list[Any] = []
    graph = Graph(name, Structure("leaf"), Structure("leaf"), symbols=translate.ranges)
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder":
            spec = kinds[node.name]
            if spec.kind is InputKind.USER_INPUT:
                is_tensor = isinstance(value, torch.Tensor)
                leaves.append(is_tensor)
                constants.append(None if is_tensor else value)
                _check_constant(constants[-1], f"input '{node.name}'")
                values[node] = graph.add_input(node.name, translate.type(value, node.name)) if is_tensor else value
            elif node.users:
                tensor = _stored_tensor(program, str(spec.target))
                key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
                target = stored.setdefault(key, str(spec.target)) if tensor.numel() else str(spec.target)
                if target not in graph.weights:
                    translate.dtype(tensor.dtype, f"weight '{target}'")
                    graph.weights[target] = tensor.detach().clone(memory_format=torch.contiguous_format)
                values[node] = graph.add_weight(target, graph.weights[target], path=target.rpartition(".")[0])
        elif node.op == "call_function":
            if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
                values[node] = translate.expression(value)
            elif not is_check(node):
                values[node] = _copy(graph, node, values, translate)
        elif node.op == "output":
            results = [values[item] if isinstance(item, fx.Node) else item for item in node.args[0]]
            for place, item in enumerate(results):
                _check_constant(item, f"output {place}")
            graph.set_output([item for item in results if isinstance(item, fx.Node)])
        else:
            raise CaptureError(f"torch.export produced a '{node.op}' node, '{node.name}', which has no meaning here")
    graph.inputs = _structure(program.call_spec.in_spec, leaves, constants)
    graph.outputs = _structure(program.call_spec.out_spec, [isinstance(r, fx.Node) for r in results], results)
    graph.drop_unused()
    return graph


def _check_constant(value: Any, what: str) -> None:
    """What is no tensor becomes part of the call's structure, and must be plain."""
    if not isinstance(value, fx.Node | bool | int | float | str | None):
        raise CaptureError(
            f"{what} is {value} ({type(value).__name__}); a model takes and returns tensors, and besides them only "
            "None, numbers and strings that stay as they were traced"
        )


def _decompositions() -> Any:
    table = torch.export.default_decompositions()
    for composite in KEPT:
        table.pop(composite, None)
    return table


def _stored_tensor(program: ExportedProgram, name: str) -> torch.Tensor:
    found = program.state_dict.get(name, program.constants.get(name))
    if not isinstance(found, torch.Tensor):
        raise CaptureError(f"the model uses '{name}' ({type(found).__name__}), which is no tensor")
    return found


def _copy(graph: Graph, node: fx.Node, values: Mapping[fx.Node, Any], translate: _Symbols) -> fx.Node:
    args = fx.map_arg(node.args, values.__getitem__)
    kwargs = fx.map_arg(node.kwargs, values.__getitem__)
    copy = graph.fx.create_node("call_function", node.target, args, kwargs, name=node.name)
    copy.meta.update(path=module_path(node), group=None)
    value = node.meta["val"]
    # For operators with several results torch's tracer and its shape rules may differ: the rules count.
    copy.meta["type"] = (
        translate.type(value, node.name) if isinstance(value, torch.Tensor) else infer(copy, graph.symbols)
    )
    return copy


def _symbols_of(value: Any) -> Iterator[sympy.Symbol]:
    """The symbols in the sizes of a traced value."""
    if isinstance(value, torch.Tensor | tuple | list):
        for item in value.shape if isinstance(value, torch.Tensor) else value:
            yield from _symbols_of(item)
    elif isinstance(value, torch.SymInt):
        yield from value.node.expr.free_symbols


class _Symbols:
    """torch's symbolic sizes, in the user's names and with their ranges."""

    def __init__(self, program: ExportedProgram, names: Mapping[str, str]) -> None:
        self.ranges: dict[str, SymbolRange] = {}
        self._new: dict[sympy.Symbol, sympy.Symbol] = {}
        # Decomposing leaves constraints on symbols of its own behind, which occur nowhere.
        occurring = {known for node in program.graph.nodes for known in _symbols_of(node.meta.get("val"))}
        for old, bounds in program.range_constraints.items():
            if old not in occurring:
                continue
            name = names.get(str(old), f"size{len(self._new)}")
            name += "_" * keyword.iskeyword(name)  # sizes are read by Python's parser
            if not isinstance(bounds.upper, sympy.Integer) or int(bounds.upper) >= 2**31:
                raise CaptureError(
                    f"dynamic size '{name}' has no maximum, which memory planning needs: "
                    f'declare torch.export.Dim("{name}", min=1, max=...)'
                )
            self.ranges[name] = SymbolRange(max(int(bounds.lower), 1), int(bounds.upper))
            self._new[old] = symbol(name)

    def expression(self, value: Any) -> Any:
        inner = value.node.expr
        if inner.is_Integer:
            return int(inner)
        if inner.is_number:
            return float(inner)
        return inner.subs(self._new)

    def dtype(self, dtype: torch.dtype, what: str) -> torch.dtype:
        if dtype not in DTYPE_NAMES:
            raise CaptureError(f"{what} is {dtype}; graphc takes {', '.join(DTYPE_NAMES.values())}")
        return dtype

    def type(self, value: torch.Tensor, what: str) -> TensorType:
        shape = tuple(self.expression(s) if isinstance(s, torch.SymInt) else int(s) for s in value.shape)
        return TensorType(shape, self.dtype(value.dtype, f"'{what}'"))


def _structure(spec: Any, is_leaf: Sequence[bool], values: Sequence[Any]) -> Structure:
    """torch's TreeSpec as a Structure: rebuild the containers around marks, then read them."""
    leaf = object()
    marks = [leaf if known else value for known, value in zip(is_leaf, values, strict=True)]
    with _quiet():
        nested = pytree.tree_unflatten(marks, spec)
    return Structure.of(_plain(nested), lambda item: item is leaf)


def _plain(value: Any) -> Any:
    """Containers of other libraries (model outputs, data classes) as tuples, lists and dicts."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value)) if type(value) in (tuple, list) else tuple(map(_plain, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return value
