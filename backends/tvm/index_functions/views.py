"""Operators that only move elements: as index functions, and as strides over memory that is already there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import sympy
from torch import fx

from graphc.backends.tvm import sizes
from graphc.backends.tvm.evaluate import At, index_function
from graphc.backends.tvm.kernel import Expr, Index, integer
from graphc.backends.tvm.loops import unflatten
from graphc.backends.tvm.operations import SPLITS, name_of, shape_of, subject
from graphc.tensor_type import Size

Strides = tuple[Size, ...]
# Of a view's arguments, its node and its input's strides: offset and strides of the result, None where it has none.
Alias = Callable[[dict[str, Any], fx.Node, Strides], "tuple[Size, Strides] | None"]

VIEWS: dict[str, Alias] = {}


def view(*names: str) -> Callable[[Alias], Alias]:
    """Enter a view under its operator names."""

    def enter(function: Alias) -> Alias:
        for name in names:
            VIEWS[name] = function
        return function

    return enter


def dim_of(dim: int, rank: int) -> int:
    return dim % rank if rank else 0


def _same(a: Size, b: Size) -> bool:
    return a == b or (not (isinstance(a, int) and isinstance(b, int)) and sympy.expand(a - b) == 0)


# -- the same elements -------------------------------------------------------------------------------

IDENTITIES = (
    "aten.clone.default",
    "aten.alias.default",
    "aten.detach.default",
    "aten.contiguous.default",
    "aten.lift_fresh_copy.default",
)


@view(*IDENTITIES)
def _identity(args: dict[str, Any], node: fx.Node, strides: Strides) -> tuple[Size, Strides]:
    return 0, strides


@index_function(*IDENTITIES)
def _identity_at(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    return at(subject(args), index)


# -- permutations ------------------------------------------------------------------------------------


def _permutation(args: dict[str, Any], rank: int) -> list[int]:
    """dims[d]: the input dimension that becomes dimension d of the result."""
    if "dims" in args:
        return [dim_of(dim, rank) for dim in args["dims"]]
    dims = list(range(rank))
    if rank >= 2:
        first, second = dim_of(args.get("dim0", 0), rank), dim_of(args.get("dim1", 1), rank)
        dims[first], dims[second] = dims[second], dims[first]
    return dims


@view("aten.permute.default", "aten.transpose.int", "aten.t.default")
def _permute(args: dict[str, Any], node: fx.Node, strides: Strides) -> tuple[Size, Strides]:
    return 0, tuple(strides[dim] for dim in _permutation(args, len(strides)))


@index_function("aten.permute.default", "aten.transpose.int", "aten.t.default")
def _permute_at(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    inner: list[Expr] = [None] * len(index)
    for position, dim in zip(index, _permutation(args, len(index)), strict=True):
        inner[dim] = position
    return at(args["self"], inner)


# -- reshapes ----------------------------------------------------------------------------------------

RESHAPES = (
    "aten.view.default",
    "aten.reshape.default",
    "aten._unsafe_view.default",
    "aten.flatten.using_ints",
    "aten.unflatten.int",
    "aten.unsqueeze.default",
    "aten.squeeze.default",
    "aten.squeeze.dim",
    "aten.squeeze.dims",
)


def chunks(old: Sequence[Size], new: Sequence[Size]) -> list[tuple[list[int], list[int]]]:
    """The finest split of two shapes of equal volume into runs of equal volume: (old dims, new dims) a run."""
    result: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a: list[int] = []
        b: list[int] = []
        left: Size = 1
        right: Size = 1
        if i < len(old) and (j == len(new) or old[i] == 1):
            a.append(i)
            left, i = old[i], i + 1
        elif j < len(new) and (i == len(old) or new[j] == 1):
            b.append(j)
            right, j = new[j], j + 1
        else:
            a, b, left, right, i, j = [i], [j], old[i], new[j], i + 1, j + 1
        while not _same(left, right):
            grow_old = i < len(old) and (j == len(new) or _smaller(left, right))
            if grow_old:
                a.append(i)
                left, i = sizes.simplify(left * old[i]), i + 1
            elif j < len(new):
                b.append(j)
                right, j = sizes.simplify(right * new[j]), j + 1
            else:
                return [(list(range(len(old))), list(range(len(new))))]
        result.append((a, b))
    return result


def _smaller(a: Size, b: Size) -> bool:
    """Whether a < b where every symbol is large: decides which side of a reshape to extend."""
    large = {symbol: 10007 for size in (a, b) if not isinstance(size, int) for symbol in size.free_symbols}
    values = [size if isinstance(size, int) else int(size.subs(large)) for size in (a, b)]
    return values[0] < values[1]


@view(*RESHAPES)
def _reshape(args: dict[str, Any], node: fx.Node, strides: Strides) -> tuple[Size, Strides] | None:
    old, new = shape_of(args["self"]), shape_of(node)
    result: list[Size] = [0] * len(new)
    for source, target in chunks(old, new):
        real = [dim for dim in source if old[dim] != 1]
        for outer, inner in pairwise(real):
            if not _same(strides[outer], sizes.simplify(strides[inner] * old[inner])):
                return None
        step: Size = strides[real[-1]] if real else 0
        for dim in reversed(target):
            result[dim] = step
            step = sizes.simplify(step * new[dim])
    return 0, tuple(result)


@index_function(*RESHAPES)
def _reshape_at(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    old, new = shape_of(args["self"]), shape_of(node)
    inner: list[Expr] = [integer(0)] * len(old)
    for source, target in chunks(old, new):
        real_source = [dim for dim in source if old[dim] != 1]
        real_target = [dim for dim in target if new[dim] != 1]
        if not real_source:
            continue
        flat = index[real_target[0]]
        for dim in real_target[1:]:
            flat = flat * at.size(new[dim]) + index[dim]
        for dim, position in zip(real_source, unflatten(flat, [at.size(old[dim]) for dim in real_source]), strict=True):
            inner[dim] = position
    return at(args["self"], inner)


# -- parts -------------------------------------------------------------------------------------------


@view("aten.expand.default")
def _expand(args: dict[str, Any], node: fx.Node, strides: Strides) -> tuple[Size, Strides]:
    old, new = shape_of(args["self"]), shape_of(node)
    added = len(new) - len(old)
    kept = [0 if old[d] == 1 and new[d + added] != 1 else strides[d] for d in range(len(old))]
    return 0, (*[0] * added, *kept)


@index_function("aten.expand.default")
def _expand_at(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    shape = shape_of(args["self"])
    tail = list(index)[len(index) - len(shape) :]
    return at(args["self"], [integer(0) if size == 1 else i for size, i in zip(shape, tail, strict=True)])


def _begin(position: Size | None, size: Size) -> Size:
    """Where a slice begins: counted from the end where negative, and held inside the dimension."""
    if position is None:
        return 0
    if isinstance(position, int) and position < 0:
        position = sizes.simplify(size + position)
    if isinstance(position, int) and isinstance(size, int):
        return max(0, min(position, size))
    return position


def part(args: dict[str, Any], node: fx.Node) -> tuple[int, Size, int]:
    """Of a slicing operator: the dimension, where it starts, and the step (0 where the dimension goes)."""
    shape = shape_of(args["self"])
    dim = dim_of(args.get("dim", 0), len(shape))
    match name_of(node):
        case "aten.slice.Tensor" | "aten.slice_scatter.default":
            return dim, _begin(args["start"], shape[dim]), args["step"]
        case "aten.select.int":
            return dim, _begin(args["index"], shape[dim]), 0
    source: Any = node.args[0]
    item: Any = node.args[1]
    if name_of(node) == "aten.unbind.int#":
        return dim, item, 0
    before = [kind.shape[dim] for kind in source.meta["type"][:item]]
    return dim, sizes.simplify(sum(before)), 1


PARTS = ("aten.slice.Tensor", "aten.select.int", *(f"{name}#" for name in SPLITS))


@view(*PARTS)
def _part(args: dict[str, Any], node: fx.Node, strides: Strides) -> tuple[Size, Strides]:
    dim, start, step = part(args, node)
    offset = sizes.simplify(start * strides[dim])
    if step == 0:
        return offset, (*strides[:dim], *strides[dim + 1 :])
    return offset, (*strides[:dim], sizes.simplify(strides[dim] * step), *strides[dim + 1 :])


@index_function(*PARTS)
def _part_at(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    dim, start, step = part(args, node)
    index = list(index)
    if step == 0:
        return at(args["self"], [*index[:dim], at.size(start), *index[dim:]])
    return at(args["self"], [*index[:dim], index[dim] * step + at.size(start), *index[dim + 1 :]])


# -- strides that the model gives ---------------------------------------------------------------------


@view("aten.as_strided.default")
def _as_strided(args: dict[str, Any], node: fx.Node, strides: Strides) -> tuple[Size, Strides] | None:
    if strides != sizes.contiguous(shape_of(args["self"])):
        return None
    return args["storage_offset"] or 0, tuple(args["stride"])


@index_function("aten.as_strided.default")
def _as_strided_at(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    """Strides count elements of the input in row-major order, whatever its order in memory here."""
    flat = at.size(args["storage_offset"] or 0)
    for position, stride in zip(index, args["stride"], strict=True):
        flat = flat + position * at.size(stride)
    return at(args["self"], unflatten(flat, [at.size(size) for size in shape_of(args["self"])]))
