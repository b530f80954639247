"""A quantized graph with gradients: rounding passes them straight through, and its values are those of the graph.

    activation   x' = (clamp(round(x / s) + z) - z) * s        d round(v) / dv = 1; z and the bounds are the graph's
    weight       w' = clamp(round(w / s)) * s                  or, learning the rounding, clamp(floor(w / s) + h(v)) * s

Step sizes learn as in LSQ (Esser et al., "Learned Step Size Quantization", ICLR 2020, section 2.1): the gradient of s
is that of the formula above with straight-through rounding, times 1 / sqrt(n * Qp) for n values and the largest integer
Qp.
They are held as s = s0 * exp(t), so that one learning rate fits steps of every size. h is AdaRound's rectified sigmoid
(Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from graphc import quantized_weight
from graphc.errors import TrainingError
from graphc.graph import Graph, arguments, concrete
from graphc.operators.quantization import along
from graphc.quantized_weight import QuantizedWeight, bounds
from graphc.training import straight_through

aten, graphc_ops = torch.ops.aten, torch.ops.graphc

LAYERS = (aten.convolution.default, aten.linear.default)
_STRETCH, _SHIFT = 1.2, 0.1  # of the rectified sigmoid


class StepSize(nn.Module):
    """s = initial * exp(logarithm): f32 of `initial`'s shape, [] or [O], always positive."""

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.register_buffer("initial", initial.clone())
        self.logarithm = nn.Parameter(torch.zeros_like(initial))

    def forward(self, count: int = 1, largest: int = 1) -> Tensor:
        """The step size; its gradient is scaled for `count` values that share it."""
        factor = 1 / math.sqrt(max(1, count) * max(1, largest))
        return self.initial * straight_through.scale_gradient(self.logarithm, factor).exp()  # type: ignore[operator]


class FakeActivation(nn.Module):
    """What quantizing and decoding a value gives. drop: the share of values left as they are while training (QDrop,
    Wei et al., ICLR 2022)."""

    def __init__(self, scale: Tensor, zero: int, low: int, high: int, drop: float = 0.0) -> None:
        super().__init__()
        self.step = StepSize(scale)
        self.zero, self.low, self.high, self.drop = zero, low, high, drop

    def forward(self, x: Tensor) -> Tensor:
        step = self.step(x.numel() // max(1, x.shape[0]), self.high - self.low)
        result = straight_through.quantized(x, step, self.low - self.zero, self.high - self.zero)
        if self.training and self.drop:
            return mixed(result, x, self.drop)
        return result


def mixed(value: Tensor, other: Tensor, share: float) -> Tensor:
    """The values, a random share of them replaced by those of `other`, at the same places in all samples of a batch:
    drawing random numbers for each took longer than all else."""
    # An interpolation, by 0 or 1 and in the values' own layout, takes a tenth of the time of torch.where.
    return value.lerp(other, (torch.rand_like(value[:1]) < share).to(value.dtype))


class FakeWeight(nn.Module):
    """A float weight [O, ...] that is rounded to the integers of `bits` with a step size for each output channel."""

    def __init__(self, weight: Tensor, scale: Tensor, bits: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.step = StepSize(scale)
        self.bounds = bounds(bits)

    def codes(self) -> Tensor:
        """int8: the integers that the weight is rounded to."""
        return self._steps(self._scale()).round().clamp(*self.bounds).detach().to(torch.int8)

    def forward(self) -> Tensor:
        step = self._scale()
        return straight_through.rounded(self._steps(step).clamp(*self.bounds)) * step

    def _scale(self) -> Tensor:
        return along(self.step(self.weight[0].numel(), max(1, self.bounds[1])), 0, self.weight.dim())

    def _steps(self, step: Tensor) -> Tensor:
        return self.weight / step


class LearnedRounding(nn.Module):
    """Whether each weight is rounded up or down: clamp(floor(w / s) + h(v)), w and s fixed. `soft`: h as it is, else 0
    or 1."""

    def __init__(self, weight: Tensor, scale: Tensor, bits: int) -> None:
        super().__init__()
        steps = weight.detach() / along(scale, 0, weight.dim())
        self.register_buffer("floor", steps.floor())
        rest = steps - steps.floor()
        self.logit = nn.Parameter(-torch.log(_STRETCH / (rest + _SHIFT) - 1))  # so that h(v) is the rest
        self.step = StepSize(scale).requires_grad_(False)
        self.bounds = bounds(bits)
        self.soft = True

    def up(self) -> Tensor:
        """h: f32 in [0, 1] of the weight's shape."""
        return (torch.sigmoid(self.logit) * _STRETCH - _SHIFT).clamp(0, 1)

    def undecided(self, exponent: float) -> Tensor:
        """AdaRound's regularizer, sum of 1 - |2 h - 1|^exponent: nought where every h is 0 or 1."""
        return (1 - (2 * self.up() - 1).abs().pow(exponent)).sum()

    def codes(self) -> Tensor:
        return (self.floor + (self.logit >= 0)).clamp(*self.bounds).to(torch.int8)  # type: ignore[operator]

    def forward(self) -> Tensor:
        up = self.up() if self.soft else (self.logit >= 0).to(torch.float32)
        step = along(self.step(), 0, self.logit.dim())
        return (self.floor + up).clamp(*self.bounds) * step  # type: ignore[operator]


Rounding = Callable[[Tensor, Tensor, int], nn.Module]


class FakeQuantized(nn.Module):
    """A graph that `quantize` made of `original`, with parameters: float weights or roundings, step sizes, biases.

    rounding: what a weight becomes, FakeWeight or LearnedRounding. drop: see FakeActivation. precision: of the values
    between layers; parameters, step sizes and what is rounded stay f32. Called with flat inputs, it gives the flat
    results; `graph()` gives the quantized graph with what was learned. Raises TrainingError where `quantized` has no
    quantized layer of `original`.
    """

    def __init__(
        self,
        original: Graph,
        quantized: Graph,
        rounding: Rounding = FakeWeight,
        drop: float = 0.0,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.quantized, self.precision = quantized, precision
        self.found: dict[fx.Node, QuantizedWeight] = {}  # by decoding
        self.replaced: dict[fx.Node, str] = {}  # node -> the module that gives its value
        self.weights, self.activations = nn.ModuleDict(), nn.ModuleDict()
        self.biases = nn.ParameterDict()
        self.bias_of: dict[fx.Node, str] = {}
        floats = {node.name: node for node in original}
        steps: dict[str, str] = {}  # values with one stored scale share their step size
        for node in quantized.calls:
            if node.target in LAYERS and node.name in floats:
                self._add_layer(node, original.weight(arguments(floats[node.name])[1]), rounding)
            elif node.target is graphc_ops.dequantize.default and _is_quantized(node.args[0]):
                self._add_activation(node, steps, drop)
        self.inside = {node for node in quantized.calls if self._inside(node)}
        if not self.weights:
            raise TrainingError("the graph has no layers that `quantize` quantized; run it first, or exclude fewer")

    def _add_layer(self, layer: fx.Node, weight: Tensor | None, rounding: Rounding) -> None:
        _, decoding, bias, *_ = arguments(layer)
        found = quantized_weight.recognize(self.quantized, decoding)
        if found is None or weight is None:
            return
        self.found[decoding] = found
        self.replaced[decoding] = layer.name
        self.weights[layer.name] = rounding(weight, found.scale, found.bits)
        stored = self.quantized.weight(bias)
        if stored is not None:  # layers may share it
            same = (name for node, name in self.bias_of.items() if node.target == bias.target)
            self.bias_of[bias] = next(same, layer.name)
            if self.bias_of[bias] == layer.name:
                self.biases[layer.name] = nn.Parameter(stored.detach().clone())

    def _add_activation(self, node: fx.Node, steps: dict[str, str], drop: float) -> None:
        _, scale_node, zero_node, axis, low, high = arguments(node.args[0])  # type: ignore[arg-type]
        scale, zero = self.quantized.weight(scale_node), self.quantized.weight(zero_node)
        if scale is None or zero is None or axis is not None:
            return
        key = str(scale_node.target)
        if key not in steps:
            steps[key] = node.name
            self.activations[node.name] = FakeActivation(scale, int(zero), low, high, drop)
        self.replaced[node] = steps[key]

    def forward(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        return self.run_flat(leaves)

    def run_flat(self, leaves: Sequence[Tensor], observe: Callable[[fx.Node, Any], None] | None = None) -> list[Tensor]:
        """The flat results; `observe(node, value)` sees what each operator gives."""
        self.quantized.bind(leaves)
        values: dict[fx.Node, Any] = dict(zip(self.quantized.placeholders, leaves, strict=True))
        self.evaluate(self.quantized.calls, values)
        if observe is not None:
            for node in self.quantized.calls:
                if node in values:
                    observe(node, values[node])
        return [values[node].to(node.meta["type"].dtype) for node in self.quantized.output.args[0]]  # type: ignore[union-attr, index]

    def evaluate(self, nodes: Iterable[fx.Node], values: dict[fx.Node, Any]) -> None:
        """Compute `nodes`, in their order, from the values that are there, into `values`."""
        evaluate(self.quantized, (node for node in nodes if node not in self.inside), values, self._replacement)

    def _replacement(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Tensor | None:
        name = self.replaced.get(node)
        if node in self.bias_of:
            bias: Tensor = self.biases[self.bias_of[node]]
            return bias.to(self.precision)
        if name is None:
            weight = self.quantized.weight(node)
            return None if weight is None or not weight.is_floating_point() else weight.to(self.precision)
        if node in self.found:
            result: Tensor = self.weights[name]()
        else:
            result = self.activations[name](values[node.args[0].args[0]])  # type: ignore[union-attr, index]
        return result.to(self.precision)

    def _inside(self, node: fx.Node) -> bool:
        """Whether only replaced nodes read a node: the integers between quantizing and decoding, packed weights."""
        unpacked = node.args[0] if node.target is aten.view.default else node
        integers = _is_quantized(node) or getattr(unpacked, "target", None) is graphc_ops.unpack.default
        return integers and all(user in self.replaced or self._inside(user) for user in node.users)

    @torch.no_grad()
    def graph(self) -> Graph:
        """The quantized graph with the learned integers, step sizes and biases."""
        result = self.quantized.clone()
        for decoding, found in self.found.items():
            name = self.replaced[decoding]
            module = self.weights[name]
            found.store(result, module.codes(), module.step().detach().clone())  # type: ignore[operator]
        for node, name in self.replaced.items():
            if node not in self.found:
                result.weights[str(node.args[1].target)] = self.activations[name].step().detach().clone()  # type: ignore[union-attr, operator]
        for bias, name in self.bias_of.items():
            result.weights[str(bias.target)] = self.biases[name].detach().clone()
        return result


def evaluate(
    graph: Graph,
    nodes: Iterable[fx.Node],
    values: dict[fx.Node, Any],
    replacement: Callable[[fx.Node, Mapping[fx.Node, Any]], Tensor | None] = lambda node, values: None,
) -> None:
    """Compute operators of a graph, in their order, from the values that are there, into `values`.

    replacement: what stands for the value of a node or a weight, None for its own. `values` holds the graph's inputs
    where its sizes are dynamic.
    """
    sizes = graph.bind([values[node] for node in graph.placeholders]) if graph.symbols else {}

    def value(used: fx.Node) -> Any:
        if used in values:
            return values[used]
        replaced = replacement(used, values)
        if replaced is None and used.op == "call_function":  # of stored weights alone, so part of no one's inputs
            evaluate(graph, [used], values, replacement)
            return values[used]
        return graph.weight(used) if replaced is None else replaced

    for node in nodes:
        if node in values:
            continue
        replaced = replacement(node, values)
        if replaced is None:
            args, kwargs = concrete((node.args, node.kwargs), value, sizes)
            function = aten.reshape.default if node.target is aten.view.default else node.target
            replaced = function(*args, **kwargs)  # type: ignore[operator]
        values[node] = replaced


def _is_quantized(node: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is graphc_ops.quantize.default
