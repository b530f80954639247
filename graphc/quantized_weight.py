"""Weights of layers as integers with one scale for each output channel: the form that integer arithmetic multiplies.

    8 bits     dequantize(q, scale, 0, 0)                                q: int8, in [-127, 127]
    b < 8      dequantize(view(unpack(packed, b)), scale, 2^(b-1), 0)    q + 2^(b-1), rows of b bits one after the other

so that what is stored takes b bits a weight. Both stand for w = q * scale with q in `bounds(b)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphc.graph import Graph, arguments
from graphc.operators.quantization import along
from graphc.operators.weights import pack

aten, graphc_ops = torch.ops.aten, torch.ops.graphc

BITS = (2, 3, 4, 8)
_RATIOS = tuple(step / 64 for step in range(12, 81))  # of the scale that spans all of a channel


def bounds(bits: int) -> tuple[int, int]:
    """The integers that a weight of `bits` takes: symmetric in 8 bits, all that there are in fewer."""
    return (-127, 127) if bits == 8 else (-(1 << bits - 1), (1 << bits - 1) - 1)


def weight_scale(weight: Tensor, bits: int = 8, least: Tensor | float = 0.0) -> Tensor:
    """Scales per output channel (dimension 0): f32 [O], at least `least`; a channel of noughts may get 1.

    8 bits: max|w| / 127. Fewer: that of the least squared error of rounding among fractions of max|w| / 2^(bits-1).
    """
    low, high = bounds(bits)
    rows = weight.detach().to(torch.float32).flatten(1)
    scale = rows.abs().amax(1) / -low
    if bits < 8:
        best, errors = scale, torch.full_like(scale, torch.inf)
        for ratio in _RATIOS:
            tried = scale * ratio
            divisor = torch.where(tried > 0, tried, 1.0).unsqueeze(1)
            error = ((rows / divisor).round().clamp(low, high) * divisor - rows).square().sum(1)
            best, errors = torch.where(error < errors, tried, best), torch.minimum(error, errors)
        scale = best
    scale = scale.clamp(min=least)
    return torch.where(scale > 0, scale, 1.0).to(torch.float32)


def nearest(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """q = clamp(round_half_even(w / scale)) in `bounds(bits)`: int8 of the weight's shape."""
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return graphc_ops.quantize(weight, scale, zero, 0, *bounds(bits))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight found in a graph. codes: int8 [O, ...] in `bounds(bits)`; scale: f32 [O]; stored, scales: names."""

    node: fx.Node
    bits: int
    codes: Tensor
    scale: Tensor
    stored: str
    scales: str

    def decoded(self) -> Tensor:
        return self.codes.to(torch.float32) * along(self.scale, 0, self.codes.dim())

    def store(self, graph: Graph, codes: Tensor, scale: Tensor) -> None:
        """Let `graph`, a clone of the one that this was found in, hold other codes (in `bounds(bits)`) and scales."""
        graph.weights[self.stored] = _packed(codes, self.bits) if self.bits < 8 else codes.to(torch.int8)
        graph.weights[self.scales] = scale


def express(graph: Graph, codes: Tensor, scale: Tensor, bits: int, stem: str, name: str) -> fx.Node:
    """Add codes (int8 [O, ...]) and scales (f32 [O]) as weights `stem.*`, and the decoding, a node of this name."""
    if bits == 8:
        q = graph.add_weight(f"{stem}.int8", codes)
    else:
        q = graph.add_weight(f"{stem}.int{bits}", _packed(codes, bits))
        q = graph.call(graphc_ops.unpack.default, q, bits, codes[0].numel())
        if codes.dim() != 2:
            q = graph.call(aten.view.default, q, list(codes.shape))
    zero = torch.full_like(scale, _offset(bits), dtype=torch.int32)
    stored = graph.add_weight(f"{stem}.scale", scale), graph.add_weight(f"{stem}.zero_point", zero)
    return graph.call(graphc_ops.dequantize.default, q, *stored, 0, name=name)


def recognize(graph: Graph, node: object) -> QuantizedWeight | None:
    """The weight that `node` decodes, where it is an expression as `express` makes it."""
    if not isinstance(node, fx.Node) or node.target is not graphc_ops.dequantize.default:
        return None
    q, scale_node, zero_node, axis = arguments(node)
    scale, zero = graph.weight(scale_node), graph.weight(zero_node)
    if scale is None or zero is None or scale.dim() != 1 or axis != 0:
        return None
    codes = graph.weight(q)
    if codes is not None and codes.dtype == torch.int8 and not bool(zero.any()):
        return QuantizedWeight(node, 8, codes, scale, str(q.target), str(scale_node.target))
    inner = q.args[0] if q.target is aten.view.default else q
    if getattr(inner, "target", None) is not graphc_ops.unpack.default:
        return None
    packed_node, bits, count = arguments(inner)
    packed = graph.weight(packed_node)
    if packed is None or bits not in BITS[:-1] or not bool((zero == _offset(bits)).all()):
        return None
    unpacked = graphc_ops.unpack(packed, bits, count).to(torch.int16) - _offset(bits)
    shape = q.meta["type"].shape
    return QuantizedWeight(
        node, bits, unpacked.to(torch.int8).reshape(shape), scale, str(packed_node.target), str(scale_node.target)
    )


def _offset(bits: int) -> int:
    """What is added to codes below 8 bits, so that they are stored unsigned."""
    return 0 if bits == 8 else 1 << bits - 1


def _packed(codes: Tensor, bits: int) -> Tensor:
    return pack((codes.flatten(1).to(torch.int16) + _offset(bits)).to(torch.uint8), bits)
