"""Rewrite each idea to one form, so that later passes and backends meet one spelling only.

    transpose, t              ->  permute                     addmm, mm with a weight  ->  linear
    reshape, flatten, squeeze ->  view                        hardtanh, relu6          ->  clamp
    native batch/layer norm   ->  batch_norm, layer_norm      _softmax                 ->  softmax
    pools over a whole plane  ->  mean                        quantized_decomposed::*  ->  graphc::quantize, dequantize
    nearest upsampling by whole factors  ->  repeat_interleave
    clone, alias, view to the same shape, slice of all, conversion to the same dtype  ->  nothing

before:
graph example((%x,), {}) {
  %x = input : f32[2, 3, 4, 4]
  %t = aten.transpose.int(%x, -1, -2) : f32[2, 3, 4, 4]
  %c = aten.clone.default(%t) : f32[2, 3, 4, 4]
  %y = aten.hardtanh.default(%c, 0.0, 6.0) : f32[2, 3, 4, 4]
  return %y
}
after:
graph example((%x,), {}) {
  %x = input : f32[2, 3, 4, 4]
  %t = aten.permute.default(%x, [0, 1, 3, 2]) : f32[2, 3, 4, 4]
  %y = aten.clamp.default(%t, 0.0, 6.0) : f32[2, 3, 4, 4]
  return %y
}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

from graphc.graph import Graph, arguments, is_item
from graphc.pipeline import Pass, PassContext
from graphc.tensor_type import TensorType

aten = torch.ops.aten

# A rule gets a node and returns what stands for it: a node (perhaps its own input), or None where it does not apply.
Rule = Callable[[Graph, fx.Node], fx.Node | None]


@dataclass(frozen=True)
class Canonicalize(Pass):
    """One spelling for each idea; see the module's table."""

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        result = graph.clone()
        changed = False
        for node in list(result.fx.nodes):
            rule = RULES.get("getitem" if is_item(node) else str(node.target)) if node.op == "call_function" else None
            if rule is None:
                continue
            with result.at(node):
                new = rule(result, node)
            if new is not None:
                result.replace(node, new)
                if is_item(node):  # "getitem" says nothing
                    result.rename(new, str(new.target).split(".")[1])
                changed = True
        if not changed:
            return graph
        result.drop_unused()
        return result


def _type(node: Any) -> TensorType:
    found: TensorType = node.meta["type"]
    return found


def _axis(axis: int, rank: int) -> int:
    return axis % rank if rank else 0


def _identity(graph: Graph, node: fx.Node) -> fx.Node | None:
    source = node.args[0]
    return source if isinstance(source, fx.Node) and _type(source) == _type(node) else None


def _dropout(graph: Graph, node: fx.Node) -> fx.Node | None:
    _, _, training = arguments(node)
    return None if training else _identity(graph, node)


def _convert(graph: Graph, node: fx.Node) -> fx.Node | None:
    """A conversion between dtypes in one spelling; one to the same dtype is nothing."""
    source, dtype = node.args[0], _type(node).dtype
    if _type(source).dtype == dtype:
        return source  # type: ignore[return-value]
    if node.target is aten._to_copy.default and dict(node.kwargs) == {"dtype": dtype}:
        return None
    return graph.call(aten._to_copy.default, source, dtype=dtype)


def _view(graph: Graph, node: fx.Node) -> fx.Node | None:
    """Any change of shape that keeps the order of elements; sizes are written out, never -1."""
    sizes = list(_type(node).shape)
    source: Any = node.args[0]
    while source.target is aten.view.default:
        source = source.args[0]
    if _type(source).shape == _type(node).shape:
        return source  # type: ignore[no-any-return]
    if source is node.args[0] and node.target is aten.view.default and list(node.args[1]) == sizes:  # type: ignore[arg-type]
        return None
    return graph.call(aten.view.default, source, sizes)


def _permute(graph: Graph, node: fx.Node, order: Sequence[int]) -> fx.Node | None:
    plain = [_axis(axis, len(order)) for axis in order]
    if plain == list(range(len(plain))):
        return node.args[0]  # type: ignore[return-value]
    if node.target is aten.permute.default and list(node.args[1]) == plain:  # type: ignore[arg-type]
        return None
    return graph.call(aten.permute.default, node.args[0], plain)


def _transpose(graph: Graph, node: fx.Node) -> fx.Node | None:
    rank = len(_type(node).shape)
    first, second = (-1, -2) if node.target is aten.t.default else node.args[1:3]
    order = list(range(rank))
    if rank > 1:
        one, two = _axis(first, rank), _axis(second, rank)  # type: ignore[arg-type]
        order[one], order[two] = order[two], order[one]
    return _permute(graph, node, order)


def _slice(graph: Graph, node: fx.Node) -> fx.Node | None:
    return node.args[0] if _type(node.args[0]) == _type(node) else None  # type: ignore[return-value]


def _clamp(graph: Graph, node: fx.Node) -> fx.Node | None:
    source, *bounds = arguments(node)
    low, high = bounds or (0.0, 6.0)
    return graph.call(aten.clamp.default, source, low, high)


def _item(graph: Graph, node: fx.Node) -> fx.Node | None:
    """The first result of a normalization, which is all that inference uses."""
    source, index = node.args
    if index != 0 or not isinstance(source, fx.Node):
        return None
    if source.target is aten._native_batch_norm_legit_no_training.default:
        *parameters, momentum, epsilon = source.args
        return graph.call(aten.batch_norm.default, *parameters, False, momentum, epsilon, False)
    if source.target is aten.native_layer_norm.default:
        return graph.call(aten.layer_norm.default, *source.args, False)
    return None


def _linear_of_weight(graph: Graph, x: Any, weight: Any, bias: Any) -> fx.Node | None:
    """x @ weight + bias as linear, where `weight` [in, out] is stored, or is the transpose of what is stored."""
    if isinstance(weight, fx.Node) and weight.target is aten.permute.default:
        stored, order = weight.args
        if list(order) == [1, 0] and graph.weight(stored) is not None:  # type: ignore[arg-type]
            return graph.call(aten.linear.default, x, stored, bias)
    if graph.weight(weight) is None:
        return None
    return graph.call(aten.linear.default, x, graph.call(aten.permute.default, weight, [1, 0]), bias)


def _addmm(graph: Graph, node: fx.Node) -> fx.Node | None:
    bias, x, weight = node.args[:3]
    if any(value != 1 for value in node.kwargs.values()) or len(_type(bias).shape) != 1:
        return None
    if _type(bias).shape != _type(node).shape[1:]:
        return None
    return _linear_of_weight(graph, x, weight, bias)


def _mm(graph: Graph, node: fx.Node) -> fx.Node | None:
    return _linear_of_weight(graph, node.args[0], node.args[1], None)


def _whole_plane(graph: Graph, node: fx.Node) -> fx.Node | None:
    """A pool over the whole plane is a mean."""
    source, result = _type(node.args[0]).shape, _type(node).shape
    if len(source) != 4 or tuple(result[2:]) != (1, 1):
        return None
    if node.target is aten.avg_pool2d.default:
        _, kernel, _, padding, _, _, divisor = arguments(node)
        if any(padding) or list(kernel) != list(source[2:]) or divisor is not None:
            return None
    return graph.call(aten.mean.dim, node.args[0], [2, 3], True)


def _upsample(graph: Graph, node: fx.Node) -> fx.Node | None:
    """Nearest upsampling by whole factors repeats rows and columns, whatever the dtype."""
    source: Any = node.args[0]
    before, after = _type(source).shape[2:], _type(node).shape[2:]
    factors = [sympy.sympify(b) / sympy.sympify(a) for a, b in zip(before, after, strict=True)]
    # Scales that are given count, whatever the sizes are rounded to.
    scales = arguments(node)[2:] if node.target is aten.upsample_nearest2d.default else arguments(node)[2] or ()
    if not all(factor.is_Integer for factor in factors) or any(
        scale is not None and scale != float(factor) for scale, factor in zip(scales, factors, strict=False)
    ):
        return None
    for axis, factor in zip((2, 3), factors, strict=True):
        if factor != 1:
            source = graph.call(aten.repeat_interleave.self_int, source, int(factor), axis)
    return source  # type: ignore[no-any-return]


def _softmax(graph: Graph, node: fx.Node) -> fx.Node | None:
    if node.args[2]:  # half_to_float
        return None
    kept = aten.softmax.int if node.target is aten._softmax.default else aten.log_softmax.int
    return graph.call(kept, node.args[0], node.args[1])


def _parameter(graph: Graph, node: fx.Node, value: Any, dtype: torch.dtype, kind: str) -> fx.Node:
    """A quantization parameter given as a number or as a stored tensor, perhaps of another dtype."""
    tensor = graph.weight(value)
    tensor = torch.tensor(value, dtype=dtype) if tensor is None else tensor.to(dtype)
    return graph.add_weight(f"{node.name}.{kind}", tensor)


def _quantize(graph: Graph, node: fx.Node) -> fx.Node | None:
    axis, low, high = _quantized_range(node)
    if not _stored(graph, node.args[1]) or not _stored(graph, node.args[2]):
        return None
    scale = _parameter(graph, node, node.args[1], torch.float32, "scale")
    zeros = torch.zeros(_type(scale).shape).tolist() if node.args[2] is None else node.args[2]
    zero = _parameter(graph, node, zeros, torch.int32, "zero_point")
    if "dequantize" in str(node.target):
        return graph.call(torch.ops.graphc.dequantize.default, node.args[0], scale, zero, axis)
    return graph.call(torch.ops.graphc.quantize.default, node.args[0], scale, zero, axis, low, high)


def _stored(graph: Graph, value: Any) -> bool:
    return not isinstance(value, fx.Node) or graph.weight(value) is not None


def _quantized_range(node: fx.Node) -> tuple[Any, Any, Any]:
    """(axis, qmin, qmax) of a quantized_decomposed operator."""
    if "per_channel" in str(node.target):
        return node.args[3], node.args[4], node.args[5]
    return None, node.args[3], node.args[4]


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ["aten.clone.default", "aten.alias.default", "aten.detach.default", "aten.lift_fresh_copy.default",
         "aten.contiguous.default", "aten.expand.default", "aten.lift_fresh.default"],
        _identity),
    "aten.dropout.default": _dropout,
    **dict.fromkeys(
        ["aten._to_copy.default", "aten.to.dtype", "aten.to.dtype_layout", "aten.type_as.default", "aten.to.device"],
        _convert),
    **dict.fromkeys(
        ["aten.view.default", "aten.reshape.default", "aten._unsafe_view.default", "aten.flatten.using_ints",
         "aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default", "aten.unsqueeze.default",
         "aten.view_copy.default", "aten.unflatten.int"],
        _view),
    "aten.transpose.int": _transpose,
    "aten.t.default": _transpose,
    "aten.permute.default": lambda graph, node: _permute(graph, node, node.args[1]),  # type: ignore[arg-type]
    "aten.slice.Tensor": _slice,
    "aten.hardtanh.default": _clamp,
    "aten.relu6.default": _clamp,
    "getitem": _item,
    "aten.addmm.default": _addmm,
    "aten.mm.default": _mm,
    "aten._adaptive_avg_pool2d.default": _whole_plane,
    "aten.adaptive_avg_pool2d.default": _whole_plane,
    "aten.avg_pool2d.default": _whole_plane,
    "aten.upsample_nearest2d.vec": _upsample,
    "aten.upsample_nearest2d.default": _upsample,
    "aten._softmax.default": _softmax,
    "aten._log_softmax.default": _softmax,
    **dict.fromkeys(
        [f"quantized_decomposed.{verb}_{grain}.{overload}"
         for verb in ("quantize", "dequantize") for grain in ("per_tensor", "per_channel")
         for overload in ("default", "tensor")],
        _quantize),
}  # fmt: skip
