"""Scales of channels that move from a value into the layers that read it: multiplied there, divided where it is made.

    x W^T = (x / s) (W * s)^T

The division costs nothing in the stored parameters of what the value is made of:

    x / s = f(y, p / s)    layer normalization (weight and bias), a product with a stored vector (the end of a root mean
                           square normalization), a linear layer (the rows of its weight, its bias)

and through operators that pass the division on to what they read: relu, a product of two values (to one of them), views
and permutations that keep channels apart, and attention (to its values; query heads that share a head of values share
its scales). Channels lie along the last dimension.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from graphc.graph import Graph, arguments

aten = torch.ops.aten
_PRODUCT, _ATTENTION = aten.mul.Tensor, aten.scaled_dot_product_attention.default


@dataclass(frozen=True)
class Fold:
    """source: the operator whose parameters take the division in, at the arguments `places`. units: int64 [C], for each
    channel of the value the one of the source that it is made of."""

    source: fx.Node
    places: tuple[int, ...]
    units: Tensor

    def tied(self, scale: Tensor) -> Tensor:
        """[C] positive -> the geometric mean over the channels of a unit, [C]: what can be divided by."""
        count = int(self.units.max()) + 1
        sums = torch.zeros(count, dtype=scale.dtype).index_add_(0, self.units, scale.log())
        return (sums / torch.bincount(self.units, minlength=count))[self.units].exp()

    def divide(self, graph: Graph, scale: Tensor, suffix: str) -> None:
        """Let the value come divided by `scale` f32 [C], one that is tied; the parameters are stored anew as
        `name.suffix`. The graph is changed."""
        args = arguments(self.source)
        for place in self.places:
            name = str(args[place].target)
            parameter = graph.weights[name].detach()
            unit = torch.ones(int(self.units.max()) + 1).index_put((self.units,), scale)
            if self.source.target is aten.linear.default:
                unit = unit.reshape(-1, *[1] * (parameter.dim() - 1))
            with graph.at(self.source):
                args[place] = graph.add_weight(f"{name}.{suffix}", (parameter / unit).reshape(parameter.shape))
        self.source.args = tuple(args)


def linear_readers(graph: Graph) -> dict[fx.Node, list[fx.Node]]:
    """By value, the linear layers with stored f32 weights that read it, in the graph's order."""
    found: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.calls:
        if node.target is aten.linear.default and graph.weight(node.args[0]) is None:
            weight = graph.weight(node.args[1])
            if weight is not None and weight.dtype == torch.float32:
                found.setdefault(node.args[0], []).append(node)  # type: ignore[arg-type]
    return found


def multiply(graph: Graph, layers: Iterable[fx.Node], scale: Tensor, suffix: str) -> None:
    """Let linear layers with stored weights take their input divided by `scale` f32 [columns]: the weights times it are
    stored as `name.suffix`. The graph is changed."""
    for layer in layers:
        args = arguments(layer)
        name = str(args[1].target)
        with graph.at(layer):
            args[1] = graph.add_weight(f"{name}.{suffix}", graph.weights[name].detach() * scale)
        layer.args = tuple(args)


def users(graph: Graph, parameter: Any) -> list[fx.Node]:
    """All that read what a get_attr node reads."""
    return [user for node in graph if node.op == "get_attr" and node.target == parameter.target for user in node.users]


def fold(graph: Graph, value: fx.Node, readers: Collection[fx.Node]) -> Fold | str:
    """Where a division of `value`, which only the nodes `readers` shall notice, can go; else the reason why nowhere."""
    path = _path(graph, value, set(readers))
    if isinstance(path, str):
        return path
    *through, source, places = path
    columns = source.meta["type"].shape[-1]
    units = torch.arange(columns).reshape(*[1] * (len(source.meta["type"].shape) - 1), columns)
    for node in reversed(through):
        passed = _forward(node, units)
        if passed is None:
            return f"the {_called(node)} %{node.name} takes channels apart"
        units = passed
    if units.shape[:-1].numel() != 1 or units.numel() != value.meta["type"].shape[-1]:
        return "its channels do not lie along the last dimension"
    return Fold(source, places, units.flatten())


def _path(graph: Graph, value: fx.Node, readers: set[fx.Node]) -> Any:
    """[value, ..., source, places of its parameters], each node read by the one before it alone; or a reason."""
    if value.op != "call_function":
        return f"%{value.name} is {'an input' if value.op == 'placeholder' else 'stored'}"
    if set(value.users) - readers:
        return f"%{value.name} is read by %{next(user.name for user in value.users if user not in readers)} too"
    args = arguments(value)
    if (places := _parameters(graph, value, args)) is not None:
        if any(len(users(graph, args[place])) > 1 for place in places):
            return f"the parameters of %{value.name} are read elsewhere too"
        return [value, places]
    if value.target is _PRODUCT:
        factors = [x for x in args[:2] if isinstance(x, fx.Node) and x.meta["type"].shape == value.meta["type"].shape]
        found = [_path(graph, x, {value}) for x in reversed(factors) if args[0] is not args[1]]
        reason = " and ".join(each for each in found if isinstance(each, str))
        path = next((each for each in found if not isinstance(each, str)), reason or f"%{value.name} is a square")
    elif value.target in _PASSING:
        path = _path(graph, args[_PASSING[value.target]], {value})
    else:
        return f"%{value.name} is made by {_called(value)}, which does not pass a division on"
    return path if isinstance(path, str) else [value, *path]


def _parameters(graph: Graph, node: fx.Node, args: list[Any]) -> tuple[int, ...] | None:
    """The places of the stored parameters that scale what a node makes, all of them."""
    needed: tuple[int, ...]
    optional: tuple[int, ...] = ()
    if node.target is aten.layer_norm.default and len(args[1]) == 1:
        needed, optional = (2,), (3,)
    elif node.target is aten.linear.default:
        needed, optional = (1,), (2,)
    elif node.target is _PRODUCT:
        columns = node.meta["type"].shape[-1:]
        stored = {place: p for place in (0, 1) if (p := graph.weight(args[place])) is not None}
        vectors = [place for place, p in stored.items() if p.shape[-1:] == columns and (p.numel(),) == columns]
        if not vectors:
            return None
        needed = (vectors[0],)
    else:
        return None
    places = needed + tuple(place for place in optional if args[place] is not None)
    parameters = [graph.weight(args[place]) for place in places]
    return places if all(each is not None and each.dtype == torch.float32 for each in parameters) else None


# By operator, the argument that a division is passed on to.
_PASSING = {aten.relu.default: 0, aten.view.default: 0, aten.permute.default: 0, _ATTENTION: 2}


def _forward(node: fx.Node, units: Tensor) -> Tensor | None:
    """From the units along the axes of what a node reads (1 along those without channels) to those of its result."""
    args = arguments(node)
    shape = node.meta["type"].shape
    if node.target is aten.permute.default:
        return units.permute(args[1])
    if node.target is _ATTENTION:
        own = args[2].meta["type"].shape
        fits = len(shape) == 4 and units.shape[0] == units.shape[2] == 1 and units.shape[1] == own[1]
        return units.repeat_interleave(shape[1] // own[1], 1) if fits else None
    if node.target is not aten.view.default:
        return units
    before = args[0].meta["type"].shape
    kept = next((axis for axis, size in enumerate(units.shape) if size != 1), len(units.shape))
    same = tuple(before[:kept]) == tuple(shape[:kept])
    inside = [size for size in shape[kept:] if isinstance(size, int)]
    if not same or len(inside) != len(shape) - kept or torch.Size(inside).numel() != units.numel():
        return None
    return units.reshape([1] * kept + inside)


def _called(node: fx.Node) -> str:
    return str(node.target).removesuffix(".default")
