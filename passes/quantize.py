"""Post-training quantization: weights to 2 to 8 bits per output channel, activations to as many per tensor.

Values that integer operators take are quantized and decoded again at once; the weights of layers become expressions
`dequantize(q, scale, 0)`. The graph stays a float graph that torch can run; `integer_arithmetic` removes the floats.

    weights       q = round(w / s), s = max|w| / 127 for each output channel, or in fewer bits that of the least squared
                  error; packed below 8 bits
    activations   q = round(x / s) + z over the interval that the calibration chose; [-2^(b-1), 2^(b-1) - 1] in int8
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

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache

import torch
from torch import Tensor, fx

from graphc.calibration import Method, Observer, fitting_threads, interval
from graphc.errors import CalibrationError, PassError
from graphc.graph import Graph, arguments
from graphc.operators.quantization import along
from graphc.pipeline import Pass, PassContext
from graphc.quantized_weight import BITS, express, nearest, weight_scale

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
    """Quantize all layers but those whose path matches `exclude` (shell patterns), from `ctx.calibration`.

    bits, activation_bits: of weights, and of the values that they multiply; 2, 3, 4 or 8. Other readers, such as
    residual sums, take 8: a value that both read is quantized to 8 bits, and for the layers once more from there.
    edge_bits: what the first and the last layers have at least, in both (8 as in BRECQ, Li et al., ICLR 2021, and in
    MQBench).
    """

    fidelity = "lossy"
    bits: int = 8
    activation_bits: int = 8
    edge_bits: int = 8
    calibration: Method = "mse"
    percentile: float = 99.99
    bias_correction: bool = True
    exclude: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        for option in ("bits", "activation_bits", "edge_bits"):
            if getattr(self, option) not in BITS:
                legal = ", ".join(map(str, BITS))
                raise PassError(f"quantize: {option}={getattr(self, option)} must be one of {legal}")
        layers = [node for node in graph.calls if self._takes(graph, node)]
        if not layers:
            return graph
        if not ctx.calibration:
            raise CalibrationError("quantize needs calibration data: graphc.compile(..., calibration=batches)")
        roots = _integer_values(layers)
        edges = edge_layers(graph)
        bits = {layer: max(self.bits, self.edge_bits if layer in edges else 0) for layer in layers}
        with fitting_threads(graph):
            observers = self._observe(graph, ctx, set(roots.values()))
            means = self._bias_means(graph, ctx, bits) if self.bias_correction else {}
        read = {layer: max(self.activation_bits, self.edge_bits if layer in edges else 0) for layer in layers}
        return self._rewrite(graph, bits, read, roots, observers, means)

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

    def _bias_means(self, graph: Graph, ctx: PassContext, bits: Mapping[fx.Node, int]) -> dict[str, Tensor]:
        """For each layer, the mean per output channel that its weights' rounding error contributes."""
        probe = graph.clone()
        nodes = {node.name: node for node in probe}
        names = [layer.name for layer in bits]
        results = []
        for name, count in zip(names, bits.values(), strict=True):
            layer = nodes[name]
            weight = probe.weights[str(layer.args[1].target)]  # type: ignore[union-attr]
            scale = weight_scale(weight, count)
            error = weight - nearest(weight, scale, count) * along(scale, 0, weight.dim())
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
        bits: Mapping[fx.Node, int],
        read: Mapping[fx.Node, int],
        roots: dict[fx.Node, fx.Node],
        observers: dict[fx.Node, Observer],
        means: dict[str, Tensor],
    ) -> Graph:
        """bits: of the layers' weights; read: of what the layers multiply."""
        result = graph.clone()
        nodes = {node.name: node for node in result}
        widest: dict[fx.Node, int] = {}  # that a value of the root is read in
        for value, root in roots.items():
            wanted = (read.get(user, 0 if roots.get(user) is root else 8) for user in value.users)
            widest[root] = max(widest.get(root, 0), *wanted)

        @cache
        def parameters(root: fx.Node, count: int) -> tuple[Tensor, Tensor, int]:
            low, high = interval(observers[root], self.calibration, 1 << count, self.percentile)
            return *_activation_parameters(low, high, count), count

        for value, root in roots.items():
            decoded = _insert(result, nodes[value.name], root.name, *parameters(root, widest[root]))
            for count in sorted({read[user] for user in value.users if user in read} - {widest[root]}):
                users = [nodes[user.name] for user in value.users if read.get(user) == count]
                _insert(result, decoded, f"{root.name}.int{count}", *parameters(root, count), users)
        for layer, count in bits.items():
            _quantize_layer(result, nodes[layer.name], means.get(layer.name), count)
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


def edge_layers(graph: Graph) -> set[fx.Node]:
    """The first layers, which no other layer comes before, and the last, which none comes after."""
    before: set[fx.Node] = set()  # all that depends on a layer
    after: set[fx.Node] = set()  # all that a layer depends on
    first = {node for node in graph.calls if _mark(node, node.all_input_nodes, before)}
    last = {node for node in reversed(graph.calls) if _mark(node, node.users, after)}
    return first | last


def _mark(node: fx.Node, neighbours: Iterable[fx.Node], marked: set[fx.Node]) -> bool:
    """Whether a node is a layer without a layer on that side; marks what has one, or is one."""
    behind = any(used in marked for used in neighbours)
    if behind or node.target in LAYERS:
        marked.add(node)
    return node.target in LAYERS and not behind


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


def _activation_parameters(low: float, high: float, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point that span [low, high] with all integers of `bits`; nought is represented exactly."""
    half = 1 << bits - 1
    scale = torch.tensor(max(high - low, 1e-12) / (2 * half - 1) if high > low else 1.0, dtype=torch.float32)
    zero = round(-half - low / float(scale))
    return scale, torch.tensor(min(max(zero, -half), half - 1), dtype=torch.int32)


def _insert(
    graph: Graph,
    value: fx.Node,
    name: str,
    scale: Tensor,
    zero: Tensor,
    bits: int,
    users: Sequence[fx.Node] | None = None,
) -> fx.Node:
    """Let users of a value, or all of them, read it quantized and decoded: the decoding."""
    after = value.next
    while after.op == "placeholder":
        after = after.next
    stem = value.name.removesuffix("_decoded")
    with graph.at(after, path=value.meta["path"]):
        stored = graph.add_weight(f"{name}.scale", scale), graph.add_weight(f"{name}.zero_point", zero)
        half = 1 << bits - 1
        q = graph.call(graphc_ops.quantize.default, value, *stored, None, -half, half - 1, name=f"{stem}_int{bits}")
        ending = "decoded" if users is None else f"decoded_int{bits}"
        decoded = graph.call(graphc_ops.dequantize.default, q, *stored, None, name=f"{stem}_{ending}")
    chosen = set(value.users) - {q} if users is None else set(users)
    value.replace_all_uses_with(decoded, delete_user_cb=chosen.__contains__)
    return decoded


def _quantize_layer(graph: Graph, layer: fx.Node, mean: Tensor | None, bits: int) -> None:
    args = arguments(layer)
    stem = str(args[1].target)
    weight, bias = graph.weights[stem], graph.weight(args[2])
    if mean is not None:
        bias = mean.to(torch.float32) if bias is None else bias + mean
    # The bias is stored in steps of (scale of x) * (scale of w): in a channel of tiny weights that must not overflow.
    x_scale = graph.weight(args[0].args[1])
    assert x_scale is not None  # `_insert` put it there
    scale = weight_scale(weight, bits, 0.0 if bias is None else bias.abs() / (x_scale * _LARGEST_BIAS))
    with graph.at(layer):
        args[1] = express(graph, nearest(weight, scale, bits), scale, bits, stem, f"{layer.name}_weight")
        if mean is not None and bias is not None:
            args[2] = graph.add_weight(f"{stem.removesuffix('.weight')}.bias.corrected", bias)
        layer.args = tuple(args)
