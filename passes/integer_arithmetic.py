"""Compute quantized layers in integers: `dequantize -> operator -> quantize` becomes integer operators and one rescale.

    layer      y_q = rescale(sum (x_q - z_x) * w_q + b_q)     with b_q = round(b / (s_x s_w)), factor s_x s_w / s_y
    sum        y_q = rescale(rescale(a_q) + rescale(b_q))     the terms times whole numbers below 2^15, in int32
    mean       y_q = rescale(sum x_q)                         factor s_x / (n s_y)
    relu, clamp before a quantize become the bounds of its rescale; views, slices and max pools run on int8

Any quantized graph takes this road: graphc's own `quantize`, PyTorch's PT2E, ONNX's QDQ.

before:
graph example((%x,), {}) {
  %w = weight "w" #0000000000000000 : i8[4, 8]
  %ws = weight "ws" #0000000000000000 : f32[4]
  %wz = weight "wz" #0000000000000000 : i32[4]
  %s = weight "s" #0000000000000000 : f32[]
  %z = weight "z" #0000000000000000 : i32[]
  %x = input : i8[2, 8]
  %a = graphc.dequantize.default(%x, %s, %z, None) : f32[2, 8]
  %b = graphc.dequantize.default(%w, %ws, %wz, 0) : f32[4, 8]
  %y = aten.linear.default(%a, %b, None) : f32[2, 4]
  %r = aten.relu.default(%y) : f32[2, 4]
  %q = graphc.quantize.default(%r, %s, %z, None, -128, 127) : i8[2, 4]
  return %q
}
after:
graph example((%x,), {}) {
  %w = weight "w" #0000000000000000 : i8[4, 8]
  %x = input : i8[2, 8]
  %y = graphc.integer_linear.default(%x, %w, None, 0) : i32[2, 4]
  %y_multiplier = weight "y.multiplier" #0000000000000000 : i32[4]
  %y_shift = weight "y.shift" #0000000000000000 : i32[4]
  %q = graphc.rescale.default(%y, %y_multiplier, %y_shift, 0, 0, 1, 0, 127) : i8[2, 4]
  return %q
}
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from graphc import quantized_weight
from graphc.graph import Graph, arguments
from graphc.operators.quantization import integer_dtype, multiplier_and_shift
from graphc.pipeline import Pass, PassContext

aten, graphc_ops = torch.ops.aten, torch.ops.graphc

_LAYERS = (aten.convolution.default, aten.linear.default)
# Operators that move or choose elements: on integers they do what they do on floats.
MOVING = {
    aten.max_pool2d.default,
    aten.view.default,
    aten.permute.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.repeat_interleave.self_int,
}
# Terms of a sum are counted in units so small that the larger scale has this many: whole numbers of units are all that
# a rescale has to multiply by, and a sum of two terms, of 9 + 15 bits, stays exact in float32.
_UNITS = 2**15 - 1


@dataclass(frozen=True)
class Integer:
    """An integer value and its meaning: (node - zero) * scale; scale is f64 [] or [C] along `axis`."""

    node: fx.Node
    scale: Tensor
    zero: int
    axis: int | None = None


@dataclass(frozen=True)
class IntegerArithmetic(Pass):
    """Lower every quantized operator that has an integer form; the others keep their floats."""

    fidelity = "close"

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        result = graph.clone()
        changed = False
        for node in list(result.fx.nodes):
            if node.target is graphc_ops.quantize.default:
                changed |= _lower_quantize(result, node)
        for node in list(result.fx.nodes):
            if node.target in _LAYERS and node.users:
                changed |= _lower_layer(result, node)
        if not changed:
            return graph
        result.drop_unused()
        return result


def _lower_quantize(graph: Graph, node: fx.Node) -> bool:
    """quantize([relu | clamp](operator(dequantize...)))  ->  rescale(integer operator)."""
    parameters = _per_tensor(graph, node)
    if parameters is None:
        return False
    scale, zero = parameters
    source, *_, qmin, qmax = arguments(node)
    low, high = qmin, qmax
    while isinstance(source, fx.Node) and source.target in (aten.relu.default, aten.clamp.default):
        least, most = _bounds(source)
        # Quantization is monotonous: clamping before it is clamping the quantized bounds. The outer bounds, which
        # come first, hold; where `least` exceeds `most`, torch gives `most`.
        outer = low, high
        high = high if most is None else _quantized(most, scale, zero, *outer)
        low = low if least is None else min(_quantized(least, scale, zero, *outer), high)
        source = source.args[0]
    with graph.at(node):
        value = _integer(graph, source, Integer(node, scale, zero))
        if value is None:
            return False
        if _holds_all(node, low, high) and _same(value, Integer(node, scale, zero)):
            new = value.node
        elif integer_dtype(low, high) == _dtype(node):
            new = _rescale(graph, value, scale, zero, low, high)
        else:  # bounds that a narrower type would hold
            new = graph.call(aten.clamp.default, _rescale(graph, value, scale, zero, qmin, qmax), low, high)
    graph.replace(node, new)
    return True


def _lower_layer(graph: Graph, node: fx.Node) -> bool:
    """A layer on integers whose result is wanted in floats."""
    with graph.at(node):
        value = _layer(graph, node)
        if value is None:
            return False
        stem = node.meta["path"] or node.name
        scale = graph.add_weight(f"{stem}.step", value.scale.to(torch.float32))
        zero = graph.add_weight(f"{stem}.zero_point", torch.zeros_like(value.scale, dtype=torch.int32))
        new = graph.call(graphc_ops.dequantize.default, value.node, scale, zero, value.axis)
    graph.replace(node, new)
    return True


def _integer(graph: Graph, node: Any, wanted: Integer) -> Integer | None:
    """The integer form of a float value; `wanted` is the form that its reader would like best."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    if node.target is graphc_ops.dequantize.default:
        parameters = _per_tensor(graph, node)
        return None if parameters is None else Integer(node.args[0], *parameters)  # type: ignore[arg-type]
    if node.target in _LAYERS:
        return _layer(graph, node)
    if node.target in MOVING or node.target is aten.constant_pad_nd.default:
        return _moved(graph, node, wanted)
    if node.target is aten.add.Tensor and arguments(node)[2] == 1:
        return _sum(graph, node, wanted)
    if node.target is aten.cat.default:
        return _concatenation(graph, node, wanted)
    if node.target is aten.mean.dim:
        return _mean(graph, node, wanted)
    if node.target is aten.avg_pool2d.default:
        return _average_pool(graph, node, wanted)
    return None


def _layer(graph: Graph, node: fx.Node) -> Integer | None:
    x, decoded, bias_node, *geometry = arguments(node)
    if not _is_decoded(x) or not _is_decoded(decoded):
        return None
    parameters, found = _per_tensor(graph, x), _weight(graph, decoded)
    if parameters is None or found is None:
        return None
    weight, weight_scale = found
    if node.target is aten.convolution.default and geometry[3]:  # transposed
        return None
    if _dtype(x.args[0]) not in (torch.int8, torch.uint8) or weight.dim() > 4:
        return None
    bias = None if bias_node is None else _stored_float(graph, bias_node)
    if bias is None and bias_node is not None:
        return None
    scale, zero = parameters
    total = (scale * weight_scale.double()).expand(weight.shape[0]).contiguous()
    steps = None if bias is None else torch.round(bias.double() / total)
    largest = 255 * weight.double().abs().flatten(1).sum(1) + (0 if steps is None else steps.abs())
    if not bool((largest < 2.0**31).all()):  # nor where a scale is nought or NaN
        return None
    path = node.meta["path"]
    with graph.at(node):
        stored = None if steps is None else graph.add_weight(f"{path or node.name}.bias_steps", steps.to(torch.int32))
        codes = decoded.args[0]
        if codes.op != "get_attr":  # packed, with an offset that a rescale by 1 takes away
            offset = int(graph.weights[str(decoded.args[2].target)].reshape(-1)[0])
            one = torch.ones((), dtype=torch.float64)
            codes = _rescale(graph, Integer(codes, one, offset), one, 0, -offset, offset - 1)
        if node.target is aten.linear.default:
            new = graph.call(graphc_ops.integer_linear.default, x.args[0], codes, stored, zero)
            axis = len(new.meta["type"].shape) - 1
        else:
            stride, padding, dilation, _, _, groups = geometry
            new = graph.call(
                graphc_ops.integer_convolution.default,
                *(x.args[0], codes, stored, zero, list(stride), list(padding), list(dilation), groups),
            )
            axis = 1
    _take_name(new, node)
    return Integer(new, total, 0, axis)


def _weight(graph: Graph, decoded: fx.Node) -> tuple[Tensor, Tensor] | None:
    """The int8 weight that a decoding stands for, and its scales; None where it has zero points or other integers."""
    packed = quantized_weight.recognize(graph, decoded)
    if packed is not None:
        return packed.codes, packed.scale
    weight, scale, zero = (graph.weight(argument) for argument in decoded.args[:3])
    if weight is None or scale is None or zero is None:
        return None
    if weight.dtype != torch.int8 or bool(zero.any()) or decoded.args[3] not in (None, 0):
        return None
    return weight, scale


def _moved(graph: Graph, node: fx.Node, wanted: Integer) -> Integer | None:
    value = _integer(graph, node.args[0], wanted)
    if value is None or value.axis is not None or _dtype(value.node) not in (torch.int8, torch.uint8):
        return None
    if node.target is aten.constant_pad_nd.default:
        limits = torch.iinfo(_dtype(value.node))
        _, padding, filling = arguments(node)
        code = _quantized(float(filling), value.scale, value.zero, limits.min, limits.max)
        if not abs((code - value.zero) * float(value.scale) - filling) <= float(value.scale):
            return None
        new = graph.call(node.target, value.node, padding, code)
    else:
        keywords: dict[str, Any] = dict(node.kwargs)
        new = graph.call(node.target, value.node, *node.args[1:], **keywords)
    _take_name(new, node)
    return replace(value, node=new)


def _sum(graph: Graph, node: fx.Node, wanted: Integer) -> Integer | None:
    values = [_integer(graph, argument, wanted) for argument in node.args[:2]]
    known = [value for value in values if value is not None and _dtype(value.node) != torch.int32]
    if len(known) < 2:
        return None
    common = torch.stack([value.scale for value in known]).max() / _UNITS
    low, high = torch.iinfo(torch.int32).min, torch.iinfo(torch.int32).max
    whole = [replace(value, scale=torch.round(value.scale / common).clamp(min=1) * common) for value in known]
    terms = [_rescale(graph, value, common, 0, low, high) for value in whole]
    new = graph.call(aten.add.Tensor, *terms)
    _take_name(new, node)
    return Integer(new, common, 0)


def _concatenation(graph: Graph, node: fx.Node, wanted: Integer) -> Integer | None:
    parts, axis = arguments(node)
    values = [_integer(graph, part, wanted) for part in parts]
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    low, high = wanted.node.args[4:6]
    pieces = [
        value.node
        if _same(value, wanted) and _holds_all(wanted.node, low, high)  # type: ignore[arg-type]
        else _rescale(graph, value, wanted.scale, wanted.zero, low, high)  # type: ignore[arg-type]
        for value in known
    ]
    new = graph.call(aten.cat.default, pieces, axis)
    _take_name(new, node)
    return Integer(new, wanted.scale, wanted.zero)


def _mean(graph: Graph, node: fx.Node, wanted: Integer) -> Integer | None:
    source, axes, keep, _ = arguments(node)
    value = _integer(graph, source, wanted)
    if value is None or value.axis is not None or _dtype(value.node) == torch.int32:
        return None
    sizes = [value.node.meta["type"].shape[axis] for axis in axes or ()]
    if not sizes or not all(isinstance(size, int) for size in sizes):
        return None
    new = graph.call(aten.sum.dim_IntList, value.node, list(axes), keep, dtype=torch.int32)
    _take_name(new, node)
    return Integer(new, value.scale / math.prod(sizes), value.zero * math.prod(sizes))


def _average_pool(graph: Graph, node: fx.Node, wanted: Integer) -> Integer | None:
    source, kernel, stride, padding, ceil_mode, count_padding, divisor = arguments(node)
    value = _integer(graph, source, wanted)
    if value is None or value.axis is not None or _dtype(value.node) == torch.int32:
        return None
    if ceil_mode or divisor is not None or (any(padding) and not count_padding) or len(node.meta["type"].shape) != 4:
        return None
    kernel, stride, padding = (_pair(sizes) for sizes in (kernel, stride or kernel, padding))
    new = graph.call(graphc_ops.integer_sum_pool2d.default, value.node, value.zero, kernel, stride, padding)
    _take_name(new, node)
    return Integer(new, value.scale / math.prod(kernel), 0)


def _pair(sizes: Sequence[int] | int) -> list[int]:
    """torch's short forms 3 and [3] for [3, 3]."""
    listed = [sizes] if isinstance(sizes, int) else list(sizes)
    return listed * (2 // len(listed))


def _rescale(graph: Graph, value: Integer, scale: Tensor, zero: int, low: int, high: int) -> fx.Node:
    multiplier, shift = multiplier_and_shift(value.scale.double() / scale.double())
    stem = value.node.meta["path"] or value.node.name
    stored = graph.add_weight(f"{stem}.multiplier", multiplier), graph.add_weight(f"{stem}.shift", shift)
    rescale = graphc_ops.rescale.default
    return graph.call(rescale, value.node, *stored, value.zero, zero, value.axis, low, high)


def _same(value: Integer, wanted: Integer) -> bool:
    """Whether an integer value is in the wanted form already."""
    stored = _dtype(value.node) == _dtype(wanted.node)
    return stored and value.axis is None and value.zero == wanted.zero and bool(value.scale == wanted.scale)


def _holds_all(node: fx.Node, low: int, high: int) -> bool:
    """Whether [low, high] is all that the node's dtype holds, so that nothing needs clamping."""
    limits = torch.iinfo(_dtype(node))
    return (low, high) == (limits.min, limits.max)


def _dtype(node: fx.Node) -> torch.dtype:
    found: torch.dtype = node.meta["type"].dtype
    return found


def _is_decoded(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is graphc_ops.dequantize.default


def _per_tensor(graph: Graph, node: Any) -> tuple[Tensor, int] | None:
    """Scale (f64) and zero point of a quantize or dequantize with one pair for the whole value."""
    scale, zero = graph.weight(node.args[1]), graph.weight(node.args[2])
    if scale is None or zero is None or scale.numel() != 1 or zero.numel() != 1:
        return None
    return scale.double().reshape(()), int(zero)


def _stored_float(graph: Graph, node: Any) -> Tensor | None:
    """A bias that is stored, plainly or quantized."""
    if _is_decoded(node):
        stored = [graph.weight(argument) for argument in node.args[:3]]
        if any(tensor is None for tensor in stored):
            return None
        decoded: Tensor = graphc_ops.dequantize(*stored, node.args[3])
        return decoded
    return graph.weight(node)


def _bounds(node: fx.Node) -> tuple[float | None, float | None]:
    if node.target is aten.relu.default:
        return 0.0, None
    _, least, most = arguments(node)
    return least, most


def _quantized(value: float, scale: Tensor, zero: int, qmin: int, qmax: int) -> int:
    """One real number on the integer grid, as graphc::quantize rounds it."""
    stored = scale.to(torch.float32), torch.tensor(zero, dtype=torch.int32)
    return int(graphc_ops.quantize(torch.tensor(value, dtype=torch.float32), *stored, None, qmin, qmax))


def _take_name(new: fx.Node, old: fx.Node) -> None:
    """The integer operator has the name of the float one, which is on its way out."""
    new.name, old.name = old.name, f"{old.name}_float"
