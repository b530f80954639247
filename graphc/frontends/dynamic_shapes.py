"""What torch.export's `dynamic_shapes` says of each input: names of sizes, and examples that are large enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram


def dimension_names(
    program: ExportedProgram, args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> dict[str, str]:
    """torch's symbol -> the name of the user's Dim."""
    if dynamic_shapes is None:
        return {}
    inputs = [*args, *kwargs.values()]
    specs = _input_specs(args, kwargs, dynamic_shapes)
    dims: list[Any] = []
    for value, spec in zip(inputs, specs, strict=False):
        dims.extend(_leaf_dims(value, spec))
    nodes = {node.name: node for node in program.graph.nodes}
    tensors = [nodes[name].meta.get("val") for name in program.graph_signature.user_inputs if isinstance(name, str)]
    tensors = [value for value in tensors if isinstance(value, torch.Tensor)]
    found: dict[str, str] = {}
    for value, spec in zip(tensors, dims, strict=False):
        for axis, dim in spec.items():
            size = value.shape[axis]
            if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
                found.setdefault(str(size.node.expr), getattr(dim, "__name__", f"size{len(found)}"))
    return found


def _input_specs(args: Sequence[Any], kwargs: Mapping[str, Any], dynamic_shapes: Any) -> list[Any]:
    """What dynamic_shapes says of each positional, then of each keyword input."""
    if not isinstance(dynamic_shapes, Mapping):
        return list(dynamic_shapes)
    positional = [spec for key, spec in dynamic_shapes.items() if key not in kwargs]
    return positional[: len(args)] + [dynamic_shapes.get(key) for key in kwargs]


def grown(args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs whose dynamic sizes are at least 2: torch.export takes a size of 1 for a constant."""
    if not dynamic_shapes:
        return args, kwargs
    specs = _input_specs(args, kwargs, dynamic_shapes)
    larger = [_grow(value, spec) for value, spec in zip([*args, *kwargs.values()], specs, strict=False)]
    return tuple(larger[: len(args)]), dict(zip(kwargs, larger[len(args) :], strict=True))


def _grow(value: Any, spec: Any) -> Any:
    if isinstance(value, torch.Tensor):
        (dims,) = _leaf_dims(value, spec)
        for axis, dim in dims.items():
            if value.shape[axis] == 1 and getattr(dim, "max", 2) >= 2:
                value = value.repeat_interleave(2, axis)
        return value
    if spec is None:
        return value
    if isinstance(value, Mapping):
        return {key: _grow(item, spec[key]) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_grow(item, inner) for item, inner in zip(value, spec, strict=True))
    return value


def _leaf_dims(value: Any, spec: Any) -> list[dict[int, Any]]:
    """For each tensor in `value`, axis -> Dim."""
    if isinstance(value, torch.Tensor):
        axes = spec if isinstance(spec, Mapping) else dict(enumerate(spec or ()))
        return [{axis: dim for axis, dim in axes.items() if dim is not None and not isinstance(dim, int)}]
    if isinstance(value, Mapping):
        return [dims for key, item in value.items() for dims in _leaf_dims(item, spec[key] if spec else None)]
    if isinstance(value, tuple | list):
        items = spec if spec is not None else [None] * len(value)
        return [dims for item, inner in zip(value, items, strict=True) for dims in _leaf_dims(item, inner)]
    return []
