"""Where each value lies: who owns its memory, and the strides by which a logical index finds an element.

Logical shapes stay as in torch (NCHW). Convolutions and pools read and write channels-last memory; element-wise
operators keep the order of their input; graph inputs and outputs are row-major. Views alias: permuting, slicing,
expanding or reshaping costs nothing where strides can say it. An image that a convolution pads is stored with its
padding around it, and int8 values as the instruction reads them that multiplies them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import fx

from graphc.backends.tvm.geometry import CONVOLUTIONS, Geometry
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.index_functions.arithmetic import CONVERSIONS
from graphc.backends.tvm.index_functions.views import VIEWS
from graphc.backends.tvm.operations import (
    BFLOAT16,
    arguments,
    consumers,
    dtype_of,
    name_of,
    rank_of,
    shape_of,
    subject,
    type_of,
    widened,
)
from graphc.backends.tvm.placement import Halo, Placement
from graphc.backends.tvm.sizes import contiguous, product, simplify
from graphc.graph import Graph
from graphc.tensor_type import Size

CHANNELS_LAST = frozenset(
    {
        "aten.convolution.default",
        "aten.max_pool2d.default",
        "aten.avg_pool2d.default",
        "aten.adaptive_avg_pool2d.default",
        "graphc.integer_convolution.default",
        "graphc.integer_sum_pool2d.default",
        "aten.upsample_nearest2d.default",
        "aten.upsample_nearest2d.vec",
        "aten.upsample_bilinear2d.default",
        "aten.upsample_bilinear2d.vec",
    }
)


def channels_last(rank: int) -> tuple[int, ...]:
    """The order of dimensions in memory, outermost first: N, spatial, C."""
    return (0, *range(2, rank), 1)


def memory_order(strides: Iterable[Size], shape: Iterable[Size], measure: Callable[[Size], int]) -> tuple[int, ...]:
    """Dimensions from the outermost to the innermost in memory; those of size 1 or stride 0 keep their place."""
    order = list(range(len(tuple(shape))))
    real = [dim for dim, (stride, size) in enumerate(zip(strides, shape, strict=True)) if stride != 0 and size != 1]
    strides = tuple(strides)
    ranked = sorted(real, key=lambda dim: (-measure(strides[dim]), dim))
    for slot, dim in zip(real, ranked, strict=True):
        order[slot] = dim
    return tuple(order)


def arrange(
    graph: Graph, groups: list[Group], measure: Callable[[Size], int], unsigned: bool = False
) -> dict[fx.Node, Placement]:
    """The placement of every value. `measure`: the largest value of a size; `unsigned`: integer products read uint8."""
    places: dict[fx.Node, Placement] = {}
    for node in graph:
        if node.op in ("placeholder", "get_attr"):
            places[node] = Placement(node, 0, contiguous(shape_of(node)))
    results = set(graph.output.args[0])  # type: ignore[arg-type]
    for group in groups:
        node = group.output
        alias = None if node in results else _alias(group, places)
        for inner in group.nodes[:-1]:
            source = widened(inner)
            if source in places:
                places[inner] = Placement(inner, 0, places[source].strides)
        places[node] = alias or _own(group, results, places, measure, unsigned)
        for other in group.also:
            places[other] = Placement(other, 0, contiguous(shape_of(other)))
    return places


def elements(place: Placement) -> Size:
    """How many elements the owner's memory holds."""
    shape = shape_of(place.owner)
    return product(shape if place.halo is None else _with_halo(shape, place.halo))


def _with_halo(shape: tuple[Size, ...], halo: Halo) -> tuple[Size, ...]:
    image = [simplify(sum(sizes)) for sizes in zip(shape[2:], halo.before, halo.after, strict=True)]
    return (*shape[:2], *image)


def _own(
    group: Group,
    results: set[fx.Node],
    places: dict[fx.Node, Placement],
    measure: Callable[[Size], int],
    unsigned: bool,
) -> Placement:
    """Memory of the value's own."""
    node = group.output
    shape = shape_of(node)
    order = _order(group, results, places, measure)
    if node in results or group.at_load:
        return Placement(node, 0, contiguous(shape, order))
    halo = _halo(node) if order == channels_last(4) else None
    strides = contiguous(shape if halo is None else _with_halo(shape, halo), order)
    offset = 0 if halo is None else simplify(halo.before[0] * strides[2] + halo.before[1] * strides[3])
    return Placement(node, offset, strides, unsigned and _is_multiplied(node), halo)


def _halo(node: fx.Node) -> Halo | None:
    """What the windows of the convolutions that read an image need beyond its edges, where all mean the same by it."""
    before, after, fills = [0, 0], [0, 0], set()
    for g in (Geometry.of(user) for user, _ in _readers(node) if name_of(user) in CONVOLUTIONS):
        known = all(isinstance(size, int) for size in (*g.image, *g.padded, g.channels))
        if g.x is not node or not g.needs_padding or g.spread != (1, 1) or not known or min(g.before) < 0:
            continue
        if g.channels % {"float32": 1, BFLOAT16: 2, "int8": 4, "uint8": 4}.get(dtype_of(node), g.channels + 1):
            continue  # copied in any case
        fills.add(g.zero)
        for d in range(2):
            before[d] = max(before[d], g.before[d])
            after[d] = max(after[d], int(g.padded[d] - g.image[d]) - g.before[d])
    for user in consumers(node):
        if (pads := _padding(user)) is not None:
            fills.add(arguments(user)["value"])
            for d in range(2):
                before[d], after[d] = max(before[d], pads[0][d]), max(after[d], pads[1][d])
    if len(fills) != 1 or before + after == [0, 0, 0, 0]:
        return None
    return Halo((before[0], before[1]), (after[0], after[1]), fills.pop())


def _padding(node: fx.Node) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """How many rows and columns a pad puts before and after images of known size; None for what is no such pad."""
    if name_of(node) != "aten.constant_pad_nd.default" or rank_of(node) != 4:
        return None
    pads: list[int] = arguments(node)["pad"]
    left, right, above, beneath, *others = [*pads, *[0] * (4 - len(pads))]
    known = all(isinstance(size, int) for size in (*pads, *shape_of(node)[1:]))
    if not known or any(others) or min(left, right, above, beneath) < 0:
        return None
    return (above, left), (beneath, right)


def _readers(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The nodes that compute from `node`, each with what it reads: `node`, or what widens it."""
    for user in consumers(node):
        if widened(user) is node:
            yield from ((reader, user) for reader in consumers(user))
        else:
            yield user, node


def _is_multiplied(node: fx.Node) -> bool:
    """Whether integer products read the value, and none of them a channel at a time."""
    if dtype_of(node) != "int8":
        return False
    read = False
    for user in consumers(node):
        if name_of(user) == "graphc.integer_convolution.default" and arguments(user)["groups"] > 1:
            return False
        read |= name_of(user) in ("graphc.integer_convolution.default", "graphc.integer_linear.default")
    return read


def _alias(group: Group, places: dict[fx.Node, Placement]) -> Placement | None:
    """The placement of a view that needs no copy."""
    node = group.output
    name = name_of(node)
    args: dict[str, Any] = arguments(node)
    source = subject(args) if "self" in args or "input" in args else None
    if len(group.nodes) > 1 or not isinstance(source, fx.Node) or source not in places:  # its reader absorbs it
        return None
    under = places[source]
    if (pads := _padding(node)) is not None:
        return _within_halo(under, pads, args["value"])
    same_type = name in CONVERSIONS and type_of(node) == type_of(source) and "src" not in args
    if not same_type and name not in VIEWS:
        return None
    found = (0, under.strides) if same_type else VIEWS[name](args, node, under.strides)
    if found is None:
        return None
    return Placement(under.owner, simplify(under.offset + found[0]), found[1], under.flipped)


def _within_halo(under: Placement, pads: tuple[tuple[int, int], tuple[int, int]], value: float) -> Placement | None:
    """A padded image as a view of the image, where what it adds lies around that already."""
    held = under.halo
    if held is None or held.fill != value:
        return None
    if any(
        wanted > room
        for side, pad in ((held.before, pads[0]), (held.after, pads[1]))
        for wanted, room in zip(pad, side, strict=True)
    ):
        return None
    offset = under.offset - pads[0][0] * under.strides[2] - pads[0][1] * under.strides[3]
    return Placement(under.owner, simplify(offset), under.strides, under.flipped)


def _order(
    group: Group, results: set[fx.Node], places: dict[fx.Node, Placement], measure: Callable[[Size], int]
) -> tuple[int, ...]:
    """The order of the dimensions of a group's result in memory, outermost first."""
    node = group.output
    rank = rank_of(node)
    row_major = tuple(range(rank))
    if node in results or rank < 3:
        return row_major
    moved = _one_permutation(node)
    if moved is not None:
        return moved
    if name_of(group.anchor or node) in CHANNELS_LAST or any(
        _wants_channels_last(user, value) for user, value in _readers(node)
    ):
        return channels_last(rank)
    if group.anchor is None:
        for value in group.inputs:
            if shape_of(value) == shape_of(node) and value.op != "get_attr":
                return memory_order(places[value].strides, shape_of(value), measure)
    return row_major


def _one_permutation(node: fx.Node) -> tuple[int, ...] | None:
    """The order in which all readers permute a value, its last dimension staying last: then no permutation moves it."""
    orders = {
        tuple(arguments(user)["dims"]) if name_of(user) == "aten.permute.default" else None for user in consumers(node)
    }
    if len(orders) != 1 or None in orders:
        return None
    order = tuple(dim % rank_of(node) for dim in orders.pop() or ())
    return order if order[-1] == rank_of(node) - 1 else None


def _wants_channels_last(user: fx.Node, value: fx.Node) -> bool:
    if user.op != "call_function" or name_of(user) not in CHANNELS_LAST:
        return False
    args = arguments(user)
    return value is subject(args)
