"""Post-training quantization: weights to int8 per output channel, activations to int8 per tensor.

Values that integer operators take are quantized and decoded again at once; the weights of layers become expressions
`dequantize(q, scale, 0)`. The graph stays a float graph that torch can run; `integer_arithmetic` removes the floats.

    weights       q = round(w / s), s = max|w| / 127 for each output channel
    activations   q = round(x / s) + z over the interval that the calibration chose; [-128, 127]
    bias          b' = b + E[layer(x, w - w_q)]: the mean that rounding the weights takes away (bias correction,
                  Nagel et al., "Data-Free Quantization", ICCV 2019, section 4.2, from data)

before:
graph example((%x,), {}) {
  %w = weight "w" #0000000000000000 : f32[4, 8]
  %x = input : f32[2, 8]
  %y = aten.linear.default(%x, %w, None) : f32[2, 4]
  return %y
}
after:
graph example((%x,), {}) {
  %x = input : f32[2, 8]
  %x_scale = weight "x.scale" #0000000000000000 : f32[]
  %x_zero_point = weight "x.zero_point" #0000000000000000 : i32[]
  %x_int8 = graphc.quantize.default(%x, %x_scale, %x_zero_point, None, -128, 127) : i8[2, 8]
  %x_decoded = graphc.dequantize.default(%x_int8, %x_scale, %x_zero_point, None) : f32[2, 8]
  %w_int8 = weight "w.int8" #0000000000000000 : i8[4, 8]
  %w_scale = weight "w.scale" #0000000000000000 : f32[4]
  %w_zero_point = weight "w.zero_point" #0000000000000000 : i32[4]
  %y_weight = graphc.dequantize.default(%w_int8, %w_scale, %w_zero_point, 0) : f32[4, 8]
  %w_bias_corrected = weight "w.bias.corrected" #0000000000000000 : f32[4]
  %y = aten.linear.default(%x_decoded, %y_weight, %w_bias_corrected) : f32[2, 4]
  return %y
}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
from torch import Tensor, fx

from graphc.calibration import Method, Observer, fitting_threads, interval
from graphc.errors import CalibrationError, PassError
from graphc.graph import Graph, arguments
from graphc.pipeline import Pass, PassContext

aten, graphc_ops = torch.ops.aten, torch.ops.graphc

LAYERS = (aten.convolution.default, aten.linear.default)
ACTIVATIONS = (aten.relu.default, aten.clamp.default)
# The result has the elements of the input, so it has the input's scale.
SAME_SCALE = (
    aten.max_pool2d.default,
    aten.view.default,
    aten.permute.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.constant_pad_nd.default,
    aten.repeat_interleave.self_int,
)
_LARGEST_BIAS = 2.0**30  # in steps: half of what int32 holds; the sums need the rest
COMBINING = (aten.add.Tensor, aten.cat.default, aten.mean.dim, aten.avg_pool2d.default)


@dataclass(frozen=True)
class Quantize(Pass):
    """Quantize all layers but those whose path matches `exclude` (shell patterns), from `ctx.calibration`."""

    fidelity = "lossy"
    bits: int = 8
    calibration: Method = "mse"
    percentile: float = 99.99
    bias_correction: bool = True
    exclude: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        if self.bits != 8:
            raise PassError(f"quantize: bits={self.bits} is not there yet; legal: 8")
        layers = [node for node in graph.calls if self._takes(graph, node)]
        if not layers:
            return graph
        if not ctx.calibration:
            raise CalibrationError("quantize needs calibration data: graphc.compile(..., calibration=batches)")
        roots = _integer_values(layers)
        with fitting_threads(graph):
            observers = self._observe(graph, ctx, set(roots.values()))
            means = self._bias_means(graph, ctx, layers) if self.bias_correction else {}
        return self._rewrite(graph, layers, roots, observers, means)

    def _takes(self, graph: Graph, node: fx.Node) -> bool:
        if node.target not in LAYERS or any(fnmatch(node.meta["path"], pattern) for pattern in self.exclude):
            return False
        _, weight_node, bias, *geometry = arguments(node)
        weight = graph.weight(weight_node)
        stored_bias = bias is None or graph.weight(bias) is not None
        transposed = node.target is aten.convolution.default and geometry[3]
        return weight is not None and weight.dtype == torch.float32 and stored_bias and not transposed

    def _observe(self, graph: Graph, ctx: PassContext, roots: set[fx.Node]) -> dict[fx.Node, Observer]:
        """Ranges, then (unless minmax) histograms, over all calibration batches and the stored values among `roots`."""
        observers = {root: Observer() for root in roots}
        stored = {root: weight for root in roots if (weight := graph.weight(root)) is not None}
        inputs = {node: place for place, node in enumerate(graph.placeholders) if node in roots}
        looks = [Observer.see_range] if self.calibration == "minmax" else [Observer.see_range, Observer.see_counts]
        total = len(looks) * len(ctx.calibration)
        for turn, look in enumerate(looks):

            def see(node: fx.Node, value: Tensor, look=look) -> None:  # type: ignore[no-untyped-def]
                if node in observers:
                    if not value.isfinite().all():
                        raise CalibrationError(_not_finite(node))
                    look(observers[node], value)

            for node, weight in stored.items():
                see(node, weight)
            for number, batch in enumerate(ctx.calibration):
                for node, place in inputs.items():
                    see(node, batch[place])
                with torch.no_grad():
                    graph.run_flat(batch, see)
                ctx.progress("calibrating", turn * len(ctx.calibration) + number + 1, total)
        return observers

    def _bias_means(self, graph: Graph, ctx: PassContext, layers: Iterable[fx.Node]) -> dict[str, Tensor]:
        """For each layer, the mean per output channel that its weights' rounding error contributes."""
        probe = graph.clone()
        nodes = {node.name: node for node in probe}
        names = [layer.name for layer in layers]
        results = []
        for name in names:
            layer = nodes[name]
            weight = probe.weights[str(layer.args[1].target)]  # type: ignore[union-attr]
            scale = weight_scale(weight)
            error = weight - _decode(weight, scale)
            with probe.at(probe.output):
                lost = probe.call(
                    layer.target, layer.args[0], probe.add_weight(f"{name}.error", error), None, *layer.args[3:]
                )
                rank = len(lost.meta["type"].shape)
                channels = 1 if layer.target is aten.convolution.default else rank - 1
                results.append(probe.call(aten.mean.dim, lost, [axis for axis in range(rank) if axis != channels]))
        probe.output.args = (tuple(results),)
        sums = [torch.zeros(()) for _ in names]
        with torch.no_grad():
            for number, batch in enumerate(ctx.calibration):
                sums = [total + mean for total, mean in zip(sums, probe.run_flat(batch), strict=True)]
                ctx.progress("correcting biases", number + 1, len(ctx.calibration))
        return {name: total / len(ctx.calibration) for name, total in zip(names, sums, strict=True)}

    def _rewrite(
        self,
        graph: Graph,
        layers: Iterable[fx.Node],
        roots: dict[fx.Node, fx.Node],
        observers: dict[fx.Node, Observer],
        means: dict[str, Tensor],
    ) -> Graph:
        result = graph.clone()
        nodes = {node.name: node for node in result}
        parameters: dict[str, tuple[str, Tensor, Tensor]] = {}
        for value, root in roots.items():
            if root.name not in parameters:
                low, high = interval(observers[root], self.calibration, percentile=self.percentile)
                scale, zero = _activation_parameters(low, high)
                parameters[root.name] = (root.name, scale, zero)
            _insert(result, nodes[value.name], *parameters[root.name])
        for layer in layers:
            _quantize_layer(result, nodes[layer.name], means.get(layer.name))
        result.drop_unused()
        return result


def _not_finite(node: fx.Node) -> str:
    where = f" of layer '{node.meta['path']}'" if node.meta["path"] else ""
    return (
        f"%{node.name}{where} is NaN or infinite on the calibration data; quantize values that are finite, or leave the "
        "layers after it out: quantize{exclude=[...]}"
    )


def _integer_values(layers: Iterable[fx.Node]) -> dict[fx.Node, fx.Node]:
    """The values that shall be held in int8 -> the value whose scale they have.

    Backwards from the layers' inputs, through operators that stay in integers.
    """
    scales: dict[fx.Node, fx.Node] = {}
    waiting = [layer.args[0] for layer in layers]
    while waiting:
        value = waiting.pop()
        if not isinstance(value, fx.Node) or value in scales or value.meta["type"].dtype != torch.float32:
            continue
        scales[value] = value
        core = value
        while core.target in ACTIVATIONS and len(core.all_input_nodes[0].users) == 1:
            if core.all_input_nodes[0].target not in (*LAYERS, *COMBINING, *ACTIVATIONS):
                break
            core = core.all_input_nodes[0]
        if core.target in SAME_SCALE and _keeps_nought(core):
            scales[value] = core.all_input_nodes[0]
        if core.target in (*SAME_SCALE, *ACTIVATIONS) or (core.target in COMBINING and _integer_combination(core)):
            waiting.extend(core.all_input_nodes)
    # A chain of same-scale operators has the scale of its head.
    for value in scales:
        head = value
        while scales[head] is not head:
            head = scales[head]
        scales[value] = head
    order = {node: place for place, node in enumerate(next(iter(scales)).graph.nodes)} if scales else {}
    return dict(sorted(scales.items(), key=lambda item: order[item[0]]))


def _keeps_nought(node: fx.Node) -> bool:
    """Whether the operator adds no other values than nought, which every scale has."""
    return node.target is not aten.constant_pad_nd.default or arguments(node)[2] == 0


def _integer_combination(node: fx.Node) -> bool:
    """Whether a sum, concatenation or mean can stay in integers."""
    kinds = [used.meta["type"] for used in node.all_input_nodes]
    if any(kind.dtype != torch.float32 for kind in kinds) or node.meta["type"].dtype != torch.float32:
        return False
    given = arguments(node)
    if node.target is aten.add.Tensor:
        return all(isinstance(term, fx.Node) and term.op != "get_attr" for term in given[:2]) and bool(given[2] == 1)
    if node.target is aten.avg_pool2d.default:
        _, _, _, padding, ceil_mode, count_padding, divisor = given
        return not ceil_mode and divisor is None and (count_padding or not any(padding))
    if node.target is aten.mean.dim:
        return bool(given[1]) and all(isinstance(kinds[0].shape[axis], int) for axis in given[1])
    return True


def weight_scale(weight: Tensor, least: Tensor | float = 0.0) -> Tensor:
    """Symmetric scales per output channel (dimension 0): f32 [O], at least `least`; a channel of noughts may get 1."""
    scale = (weight.abs().flatten(1).amax(1) / 127).clamp(min=least)
    return torch.where(scale > 0, scale, 1.0).to(torch.float32)


def _decode(weight: Tensor, scale: Tensor) -> Tensor:
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return graphc_ops.dequantize(graphc_ops.quantize(weight, scale, zero, 0, -127, 127), scale, zero, 0)  # type: ignore[no-any-return]


def _activation_parameters(low: float, high: float) -> tuple[Tensor, Tensor]:
    """Scale and zero point that span [low, high] with [-128, 127]; nought is represented exactly."""
    scale = torch.tensor(max(high - low, 1e-12) / 255 if high > low else 1.0, dtype=torch.float32)
    zero = round(-128 - low / float(scale))
    return scale, torch.tensor(min(max(zero, -128), 127), dtype=torch.int32)


def _insert(graph: Graph, value: fx.Node, name: str, scale: Tensor, zero: Tensor) -> None:
    """Let all users of a value read it quantized and decoded."""
    after = value.next
    while after.op == "placeholder":
        after = after.next
    with graph.at(after, path=value.meta["path"]):
        stored = graph.add_weight(f"{name}.scale", scale), graph.add_weight(f"{name}.zero_point", zero)
        q = graph.call(graphc_ops.quantize.default, value, *stored, None, -128, 127, name=f"{value.name}_int8")
        decoded = graph.call(graphc_ops.dequantize.default, q, *stored, None, name=f"{value.name}_decoded")
    value.replace_all_uses_with(decoded, delete_user_cb=lambda user: user is not q)


def _quantize_layer(graph: Graph, layer: fx.Node, mean: Tensor | None) -> None:
    args = arguments(layer)
    stem = str(args[1].target)
    weight, bias = graph.weights[stem], graph.weight(args[2])
    if mean is not None:
        bias = mean.to(torch.float32) if bias is None else bias + mean
    # The bias is stored in steps of (scale of x) * (scale of w): in a channel of tiny weights that must not overflow.
    x_scale = graph.weight(args[0].args[1])
    assert x_scale is not None  # `_insert` put it there
    scale = weight_scale(weight, 0.0 if bias is None else bias.abs() / (x_scale * _LARGEST_BIAS))
    zero = torch.zeros_like(scale, dtype=torch.int32)
    with graph.at(layer):
        q = graph.add_weight(f"{stem}.int8", graphc_ops.quantize(weight, scale, zero, 0, -127, 127))
        stored = graph.add_weight(f"{stem}.scale", scale), graph.add_weight(f"{stem}.zero_point", zero)
        args[1] = graph.call(graphc_ops.dequantize.default, q, *stored, 0, name=f"{layer.name}_weight")
        if mean is not None and bias is not None:
            args[2] = graph.add_weight(f"{stem.removesuffix('.weight')}.bias.corrected", bias)
        layer.args = tuple(args)
