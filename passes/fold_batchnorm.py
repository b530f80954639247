"""Fold batch normalization into the convolution or linear layer before it.

With s = gamma / sqrt(variance + epsilon):   W' = W * s   b' = (b - mean) * s + beta   (s along the output channels)

before:
graph example((%x,), {}) {
  %w = weight "conv.weight" #0000000000000000 : f32[4, 3, 3, 3]
  %g = weight "g" #0000000000000000 : f32[4]
  %b = weight "b" #0000000000000000 : f32[4]
  %m = weight "m" #0000000000000000 : f32[4]
  %v = weight "v" #0000000000000000 : f32[4]
  %x = input : f32[1, 3, 8, 8]
  %c = aten.convolution.default(%x, %w, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1) : f32[1, 4, 8, 8]
  %y = aten.batch_norm.default(%c, %g, %b, %m, %v, False, 0.1, 1e-05, False) : f32[1, 4, 8, 8]
  return %y
}
after:
graph example((%x,), {}) {
  %x = input : f32[1, 3, 8, 8]
  %conv_weight_folded = weight "conv.weight.folded" #0000000000000000 : f32[4, 3, 3, 3]
  %conv_bias_folded = weight "conv.bias.folded" #0000000000000000 : f32[4]
  %c = aten.convolution.default(%x, %conv_weight_folded, %conv_bias_folded, [1, 1], [1, 1], [1, 1], False, [0, 0], 1) : f32[1, 4, 8, 8]
  return %c
}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphc.graph import Graph, arguments
from graphc.pipeline import Pass, PassContext

aten = torch.ops.aten


@dataclass(frozen=True)
class FoldBatchnorm(Pass):
    """Fold where the layer before feeds nothing else and all parameters are stored."""

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        result = graph.clone()
        folded = [node for node in list(result.fx.nodes) if _fold(result, node)]
        if not folded:
            return graph
        result.drop_unused()
        return result


def _fold(graph: Graph, node: fx.Node) -> bool:
    if node.target is not aten.batch_norm.default or node.args[5]:
        return False
    layer = node.args[0]
    if not isinstance(layer, fx.Node) or layer.target not in (aten.convolution.default, aten.linear.default):
        return False
    x, weight_node, bias_node, *geometry = arguments(layer)
    weight, bias = graph.weight(weight_node), graph.weight(bias_node)
    decoded, stored_node = (None, weight_node) if weight is not None else _scaled(layer, weight_node)
    weight = graph.weight(stored_node)
    if len(layer.users) != 1 or weight is None or (bias is None and bias_node is not None):
        return False
    # For a linear layer on [N, L, C], batch normalization's channels are L, not the output features.
    if layer.target is aten.linear.default and len(layer.meta["type"].shape) != 2:
        return False
    parameters = [None if argument is None else graph.weight(argument) for argument in node.args[1:5]]
    if any(p is None and argument is not None for p, argument in zip(parameters, node.args[1:5], strict=True)):
        return False
    gamma, beta, mean, variance = parameters
    if mean is None or variance is None:
        return False
    # In double precision, so that folding rounds once.
    scale = (variance.double() + float(node.args[7])).rsqrt()  # type: ignore[arg-type]
    if gamma is not None:
        scale = scale * gamma.double()
    shifted = -mean.double() if bias is None else bias.double() - mean.double()
    new_bias = shifted * scale + (0 if beta is None else beta.double())
    new_weight = weight.double() * _along_outputs(layer, weight, scale)
    stem = str(stored_node.target)
    with graph.at(layer):
        new_node = graph.add_weight(f"{stem}.folded", new_weight.to(weight.dtype).contiguous())
        if decoded is not None:
            new_node = graph.call(aten.mul.Tensor, decoded.args[0], new_node)
            if decoded is not weight_node:
                new_node = graph.call(aten.view.default, new_node, weight_node.args[1])
        bias_name = f"{stem.removesuffix('.scale').removesuffix('.weight')}.bias.folded"
        new_bias_node = graph.add_weight(bias_name, new_bias.to(weight.dtype))
        new = graph.call(layer.target, x, new_node, new_bias_node, *geometry)
    graph.replace(node, new)
    graph.fx.erase_node(layer)
    graph.rename(new, layer.name)
    return True


def _scaled(layer: fx.Node, weight: fx.Node) -> tuple[fx.Node | None, fx.Node]:
    """The product of a decoded weight [outputs, columns] and a factor for each output, which can take s in, and this
    factor; else None and the weight."""
    product = weight.args[0] if weight.target is aten.view.default else weight
    transposed = layer.target is aten.convolution.default and layer.args[6]
    if transposed or not isinstance(product, fx.Node) or product.target is not aten.mul.Tensor:
        return None, weight
    outputs, factor = weight.meta["type"].shape[0], product.args[1]
    by_row = isinstance(factor, fx.Node) and factor.meta["type"].shape == (outputs, 1)
    by_row = by_row and product.meta["type"].shape[0] == outputs
    return (product, factor) if by_row else (None, weight)  # type: ignore[return-value]


def _along_outputs(layer: fx.Node, weight: Tensor, scale: Tensor) -> Tensor:
    """The scale, shaped to multiply the weight along its output channels."""
    if layer.target is aten.convolution.default and layer.args[6]:
        # Transposed: [inputs, outputs / groups, *taps], the outputs of each group in turn.
        groups = int(layer.args[8])  # type: ignore[arg-type]
        per_input = scale.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, 0)
        return per_input.reshape(weight.shape[0], weight.shape[1], *[1] * (weight.dim() - 2))
    return scale.reshape(-1, *[1] * (weight.dim() - 1))
