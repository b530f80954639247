"""How each operator passes channels on or couples them: the rules behind graphc.channels.

A rule takes the relation and a node, relates the channels of what the node reads, and returns the axis along which the
result counts channels with a key for each place, or None where nothing is known: then all that the node reads stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from graphc.channel_relation import Key, Labels, Relation, shape_of
from graphc.graph import arguments, is_item

aten = torch.ops.aten
SPLITS = (aten.split.Tensor, aten.split_with_sizes.default)

_Rule = Callable[[Relation, fx.Node], "Labels | None"]
_RULES: dict[Any, _Rule] = {}


def _rule(*targets: Any) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


def take(work: Relation, node: fx.Node) -> None:
    """Apply the rule of a node's operator: its result's channels become labels of the relation."""
    found = _item(work, node) if is_item(node) else _RULES.get(node.target, _unknown)(work, node)
    if found is not None:
        work.labels[node] = found


def _unknown(work: Relation, node: fx.Node) -> Labels | None:
    work.fix(node)
    return None


def _item(work: Relation, node: fx.Node) -> Labels | None:
    """The first result of a batch normalization, or a part of a split."""
    source: Any = node.args[0]
    place: Any = node.args[1]
    found = work.labels.get(source)
    if source.target is aten._native_batch_norm_legit_no_training.default and place == 0:
        return found
    if source.target in SPLITS and found is not None:
        axis, keys = found
        if axis != arguments(source)[2] % len(shape_of(node)):
            return found
        start = sum(kind.shape[axis] for kind in source.meta["type"][:place])
        return axis, keys[start : start + shape_of(node)[axis]]
    return _unknown(work, node)


@_rule(aten.convolution.default)
def _convolution(work: Relation, node: fx.Node) -> Labels | None:
    x, weight, bias, *_, transposed, _, groups = arguments(node)
    if len(shape_of(x)) != len(shape_of(weight)):
        return _unknown(work, node)
    inputs = work.along(x, 1)
    if groups == len(inputs) > 1 and not transposed:  # depthwise: each output belongs to its input
        outputs = tuple(inputs[place * groups // shape_of(node)[1]] for place in range(shape_of(node)[1]))
        axes = {0: outputs}
    else:
        outputs = work.fresh(node, shape_of(node)[1])
        for keys in (inputs, outputs) if groups > 1 else ():  # every group must keep the same places
            size = len(keys) // groups
            work.couple(keys[size:], (keys[:size] * groups)[size:])
        into, out = inputs[: len(inputs) // groups], outputs[: len(outputs) // groups]
        axes = {0: inputs, 1: out} if transposed else {0: outputs, 1: into}
    work.stored(weight, node, axes)
    work.stored(bias, node, {0: outputs})
    return 1, outputs


@_rule(aten.linear.default)
def _linear(work: Relation, node: fx.Node) -> Labels:
    x, weight, bias = arguments(node)
    outputs = work.fresh(node, shape_of(node)[-1])
    work.stored(weight, node, {0: outputs, 1: work.along(x, len(shape_of(x)) - 1)})
    work.stored(bias, node, {0: outputs})
    return len(shape_of(node)) - 1, outputs


@_rule(aten._native_batch_norm_legit_no_training.default)
def _batch_norm(work: Relation, node: fx.Node) -> Labels:
    x, *statistics = arguments(node)[:5]
    keys = work.along(x, 1)
    for weight in statistics:
        work.stored(weight, node, {0: keys})
    return 1, keys


@_rule(
    *(getattr(aten, name).default for name in (
        "relu", "gelu", "silu", "sigmoid", "tanh", "hardswish", "hardsigmoid", "hardtanh", "softplus", "leaky_relu",
        "elu", "clamp", "exp", "abs", "neg", "sqrt", "erf", "clone", "_to_copy",
    )),
)  # fmt: skip
def _same(work: Relation, node: fx.Node) -> Labels | None:
    return work.labels.get(node.args[0])  # type: ignore[arg-type]


@_rule(
    aten.max_pool2d.default, aten.avg_pool2d.default, aten._adaptive_avg_pool2d.default, aten.upsample_nearest2d.vec,
    aten.upsample_bilinear2d.vec,
)  # fmt: skip
def _spatial(work: Relation, node: fx.Node) -> Labels | None:
    found = _same(work, node)
    return found if found is None or found[0] < len(shape_of(node)) - 2 else _unknown(work, node)


@_rule(aten.prelu.default)
def _prelu(work: Relation, node: fx.Node) -> Labels | None:
    x, weight = arguments(node)
    keys = work.along(x, 1)
    work.stored(weight, node, {0: keys} if shape_of(weight)[0] != 1 else {})
    return 1, keys


@_rule(aten.softmax.int, aten.log_softmax.int, aten.repeat_interleave.self_int, *SPLITS)
def _along_one(work: Relation, node: fx.Node) -> Labels | None:
    """What works along one dimension leaves channels along another one alone; a split cuts them (see `_item`)."""
    x, *rest = arguments(node)
    found = work.labels.get(x)
    place = 0 if node.target in (aten.softmax.int, aten.log_softmax.int) else 1
    if found is None or node.target in SPLITS:
        return found
    if rest[place] is not None and found[0] != rest[place] % len(shape_of(x)):
        return found
    return _unknown(work, node)


@_rule(
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default, aten.minimum.default
)  # fmt: skip
def _combine(work: Relation, node: fx.Node) -> Labels | None:
    """Broadcasting: operands of the result's size are coupled, those of size 1 there are not."""
    rank = len(shape_of(node))
    labelled = [used for used in node.all_input_nodes if used in work.labels]
    places = {used: work.labels[used][0] + rank - len(shape_of(used)) for used in labelled}
    if len(set(places.values())) != 1:
        return _unknown(work, node)
    axis = next(iter(places.values()))
    known: tuple[Key, ...] = ()
    for used in sorted(node.all_input_nodes, key=lambda used: used not in places):
        own = axis - rank + len(shape_of(used))
        if own < 0 or shape_of(used)[own] != shape_of(node)[axis]:
            continue
        if used.op == "get_attr" and known:
            work.stored(used, node, {own: known})
            continue
        keys = work.along(used, own)
        known = known or keys
        work.couple(known, keys)
    return axis, known


@_rule(aten.cat.default)
def _concatenate(work: Relation, node: fx.Node) -> Labels | None:
    parts, dim = arguments(node)
    axes = {work.labels[part][0] for part in parts if part in work.labels}
    if len(axes) != 1 or any(part.op == "get_attr" for part in parts):
        return _unknown(work, node)
    (axis,) = axes
    keys = [work.along(part, axis) for part in parts]
    if axis == dim % len(shape_of(node)):
        return axis, tuple(key for part in keys for key in part)
    for other in keys[1:]:
        work.couple(keys[0], other)
    return axis, keys[0]


@_rule(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.squeeze.dims, aten.select.int)
def _reduce(work: Relation, node: fx.Node) -> Labels | None:
    x, dims, *rest = arguments(node)
    found = work.labels.get(x)
    gone = {dim % len(shape_of(x)) for dim in ([dims] if isinstance(dims, int) else dims or range(len(shape_of(x))))}
    if found is None or found[0] in gone:
        return _unknown(work, node)
    kept = node.target not in (aten.squeeze.dims, aten.select.int) and rest[0]
    if node.target is aten.squeeze.dims:
        gone = {dim for dim in gone if shape_of(x)[dim] == 1}
    return (found[0] if kept else found[0] - sum(dim < found[0] for dim in gone)), found[1]


@_rule(aten.view.default)
def _view(work: Relation, node: fx.Node) -> Labels | None:
    """Channels stay one dimension, or are flattened with what comes after them."""
    found = work.labels.get(node.args[0])  # type: ignore[arg-type]
    if found is None:
        return None
    (axis, keys), old, new = found, shape_of(node.args[0]), shape_of(node)  # type: ignore[arg-type]
    for place, size in enumerate(new):
        if math.prod(new[:place]) == math.prod(old[:axis]) and isinstance(size, int) and size % len(keys) == 0:
            repeated = tuple(key for key in keys for _ in range(size // len(keys)))
            return (place, repeated) if len(keys) > 1 else _unknown(work, node)
    return _unknown(work, node)


@_rule(aten.expand.default, aten.unsqueeze.default, aten.permute.default)
def _moved(work: Relation, node: fx.Node) -> Labels | None:
    x, moved, *_ = arguments(node)
    found = work.labels.get(x)
    if found is None:
        return None
    (axis, keys), rank = found, len(shape_of(node))
    if node.target is aten.permute.default:
        return [dim % rank for dim in moved].index(axis), keys
    if node.target is aten.unsqueeze.default:
        return axis + int(moved % rank <= axis), keys
    axis += rank - len(shape_of(x))
    return (axis, keys) if shape_of(node)[axis] == len(keys) else _unknown(work, node)


@_rule(aten.slice.Tensor)
def _slice(work: Relation, node: fx.Node) -> Labels | None:
    x, dim, start, end, step = arguments(node)
    found = work.labels.get(x)
    if found is None or found[0] != dim % len(shape_of(x)):
        return found
    return (found[0], found[1][start:end]) if step == 1 else _unknown(work, node)


@_rule(aten.constant_pad_nd.default)
def _pad(work: Relation, node: fx.Node) -> Labels | None:
    """Padded channels are new ones: a zero-padded shortcut widens with them."""
    x, pads, _ = arguments(node)
    found = work.labels.get(x)
    if found is None:
        return None
    axis, keys = found
    before, after = pad_of(pads, len(shape_of(x)), axis)
    if min(before, after) < 0:
        return _unknown(work, node)
    new = work.fresh(node, before + after)
    return axis, (*new[:before], *keys, *new[before:])


def pad_of(pads: Sequence[int], rank: int, axis: int) -> tuple[int, int]:
    """What `constant_pad_nd` adds before and after one axis; it lists the last axis first."""
    place = 2 * (rank - 1 - axis)
    return (pads[place], pads[place + 1]) if place < len(pads) else (0, 0)


@_rule(aten.pixel_shuffle.default)
def _pixel_shuffle(work: Relation, node: fx.Node) -> Labels | None:
    x, factor = arguments(node)
    keys = work.along(x, len(shape_of(x)) - 3)
    square = factor**2
    work.couple(keys, [keys[place - place % square] for place in range(len(keys))])
    return len(shape_of(x)) - 3, keys[::square]
