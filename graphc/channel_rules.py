"""How each operator passes channels on or couples them: the rules behind graphc.channels.

A rule takes the relation and a node, relates the channels of what the node reads, and returns the axis along which the
result counts channels with a key for each place, or None where nothing is known: then all that the node reads stays.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import networkx as nx
import torch
from torch import fx

from graphc.graph import Graph, arguments, is_item

aten = torch.ops.aten
SPLITS = (aten.split.Tensor, aten.split_with_sizes.default)

Key = tuple[str, int]  # one channel where it arises: the node's name and the place
FIXED_KEY: Key = ("", 0)
Labels = tuple[int, tuple[Key, ...]]  # the axis, and the key of each place along it


class Relation:
    """relation: which channels go together, as edges between keys. labels: axis and keys of each value that has
    channels. uses: by weight and user, the keys along the axes of the weight."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.relation = nx.Graph()
        self.relation.add_node(FIXED_KEY)
        self.labels: dict[fx.Node, Labels] = {}
        self.uses: dict[str, dict[fx.Node, dict[int, tuple[Key, ...]]]] = defaultdict(dict)

    def fresh(self, node: fx.Node, count: int) -> tuple[Key, ...]:
        keys = tuple((node.name, place) for place in range(count))
        self.relation.add_nodes_from(keys)
        return keys

    def couple(self, one: Sequence[Key], other: Sequence[Key]) -> None:
        self.relation.add_edges_from(zip(one, other, strict=True))

    def fix(self, node: fx.Node) -> None:
        """All channels that a node reads must stay."""
        for used in node.all_input_nodes:
            self.along(used, None)

    def take(self, node: fx.Node) -> None:
        """Apply the rule of a node's operator."""
        found = _item(self, node) if is_item(node) else _RULES.get(node.target, _unknown)(self, node)
        if found is not None:
            self.labels[node] = found

    def along(self, value: fx.Node, axis: int | None) -> tuple[Key, ...]:
        """The keys along one axis; where the value's channels lie along another one they must stay."""
        own = self.labels.get(value)
        if own is not None and own[0] == axis:
            return own[1]
        if own is not None:
            self.couple(own[1], [FIXED_KEY] * len(own[1]))
        size = None if axis is None else _shape(value)[axis]
        return (FIXED_KEY,) * size if isinstance(size, int) else ()

    def stored(self, weight: Any, user: fx.Node, axes: Mapping[int, tuple[Key, ...]]) -> None:
        """A use of a weight whose places along these axes are channels; one that is computed fixes them."""
        if not isinstance(weight, fx.Node):
            return
        if weight.op == "get_attr" and user not in self.uses[str(weight.target)]:
            self.uses[str(weight.target)][user] = dict(axes)
            return
        self.along(weight, None)
        for keys in axes.values():
            self.couple(keys, [FIXED_KEY] * len(keys))

    def agreed(self) -> dict[str, dict[int, tuple[Key, ...]]]:
        """Each weight's axes. All users see the same channels, so theirs are coupled; one without any fixes them."""
        users: dict[str, set[fx.Node]] = defaultdict(set)
        for node in self.graph:
            if node.op == "get_attr":
                users[str(node.target)].update(node.users)
        for name, uses in self.uses.items():
            for axis in sorted({axis for axes in uses.values() for axis in axes}):
                (first, *others) = [axes.get(axis) for axes in uses.values()] + [None] * (len(users[name]) - len(uses))
                for other in others:
                    known = first or other or ()
                    self.couple(known, other if first and other else [FIXED_KEY] * len(known))
        return {name: next(iter(uses.values())) for name, uses in self.uses.items()}


_Rule = Callable[[Relation, fx.Node], "Labels | None"]
_RULES: dict[Any, _Rule] = {}


def _rule(*targets: Any) -> Callable[[_Rule], _Rule]:
    def register(rule: _Rule) -> _Rule:
        _RULES.update(dict.fromkeys(targets, rule))
        return rule

    return register


def _shape(node: fx.Node) -> tuple[Any, ...]:
    kind = node.meta["type"]
    return (kind[0] if isinstance(kind, tuple) else kind).shape  # type: ignore[no-any-return]


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
        if axis != arguments(source)[2] % len(_shape(node)):
            return found
        start = sum(kind.shape[axis] for kind in source.meta["type"][:place])
        return axis, keys[start : start + _shape(node)[axis]]
    return _unknown(work, node)


@_rule(aten.convolution.default)
def _convolution(work: Relation, node: fx.Node) -> Labels | None:
    x, weight, bias, *_, transposed, _, groups = arguments(node)
    if len(_shape(x)) != len(_shape(weight)):
        return _unknown(work, node)
    inputs = work.along(x, 1)
    if groups == len(inputs) > 1 and not transposed:  # depthwise: each output belongs to its input
        outputs = tuple(inputs[place * groups // _shape(node)[1]] for place in range(_shape(node)[1]))
        axes = {0: outputs}
    else:
        outputs = work.fresh(node, _shape(node)[1])
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
    outputs = work.fresh(node, _shape(node)[-1])
    work.stored(weight, node, {0: outputs, 1: work.along(x, len(_shape(x)) - 1)})
    work.stored(bias, node, {0: outputs})
    return len(_shape(node)) - 1, outputs


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
    return found if found is None or found[0] < len(_shape(node)) - 2 else _unknown(work, node)


@_rule(aten.prelu.default)
def _prelu(work: Relation, node: fx.Node) -> Labels | None:
    x, weight = arguments(node)
    keys = work.along(x, 1)
    work.stored(weight, node, {0: keys} if _shape(weight)[0] != 1 else {})
    return 1, keys


@_rule(aten.softmax.int, aten.log_softmax.int, aten.repeat_interleave.self_int, *SPLITS)
def _along_one(work: Relation, node: fx.Node) -> Labels | None:
    """What works along one dimension leaves channels along another one alone; a split cuts them (see `_item`)."""
    x, *rest = arguments(node)
    found = work.labels.get(x)
    place = 0 if node.target in (aten.softmax.int, aten.log_softmax.int) else 1
    if found is None or node.target in SPLITS:
        return found
    if rest[place] is not None and found[0] != rest[place] % len(_shape(x)):
        return found
    return _unknown(work, node)


@_rule(
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default, aten.minimum.default
)  # fmt: skip
def _combine(work: Relation, node: fx.Node) -> Labels | None:
    """Broadcasting: operands of the result's size are coupled, those of size 1 there are not."""
    rank = len(_shape(node))
    labelled = [used for used in node.all_input_nodes if used in work.labels]
    places = {used: work.labels[used][0] + rank - len(_shape(used)) for used in labelled}
    if len(set(places.values())) != 1:
        return _unknown(work, node)
    axis = next(iter(places.values()))
    known: tuple[Key, ...] = ()
    for used in sorted(node.all_input_nodes, key=lambda used: used not in places):
        own = axis - rank + len(_shape(used))
        if own < 0 or _shape(used)[own] != _shape(node)[axis]:
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
    if axis == dim % len(_shape(node)):
        return axis, tuple(key for part in keys for key in part)
    for other in keys[1:]:
        work.couple(keys[0], other)
    return axis, keys[0]


@_rule(aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.squeeze.dims, aten.select.int)
def _reduce(work: Relation, node: fx.Node) -> Labels | None:
    x, dims, *rest = arguments(node)
    found = work.labels.get(x)
    gone = {dim % len(_shape(x)) for dim in ([dims] if isinstance(dims, int) else dims or range(len(_shape(x))))}
    if found is None or found[0] in gone:
        return _unknown(work, node)
    kept = node.target not in (aten.squeeze.dims, aten.select.int) and rest[0]
    if node.target is aten.squeeze.dims:
        gone = {dim for dim in gone if _shape(x)[dim] == 1}
    return (found[0] if kept else found[0] - sum(dim < found[0] for dim in gone)), found[1]


@_rule(aten.view.default)
def _view(work: Relation, node: fx.Node) -> Labels | None:
    """Channels stay one dimension, or are flattened with what comes after them."""
    found = work.labels.get(node.args[0])  # type: ignore[arg-type]
    if found is None:
        return None
    (axis, keys), old, new = found, _shape(node.args[0]), _shape(node)  # type: ignore[arg-type]
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
    (axis, keys), rank = found, len(_shape(node))
    if node.target is aten.permute.default:
        return [dim % rank for dim in moved].index(axis), keys
    if node.target is aten.unsqueeze.default:
        return axis + int(moved % rank <= axis), keys
    axis += rank - len(_shape(x))
    return (axis, keys) if _shape(node)[axis] == len(keys) else _unknown(work, node)


@_rule(aten.slice.Tensor)
def _slice(work: Relation, node: fx.Node) -> Labels | None:
    x, dim, start, end, step = arguments(node)
    found = work.labels.get(x)
    if found is None or found[0] != dim % len(_shape(x)):
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
    before, after = pad_of(pads, len(_shape(x)), axis)
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
    keys = work.along(x, len(_shape(x)) - 3)
    square = factor**2
    work.couple(keys, [keys[place - place % square] for place in range(len(keys))])
    return len(_shape(x)) - 3, keys[::square]
