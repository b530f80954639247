"""Operators that read where an integer tensor says. An index out of range reads the nearest legal element.

torch raises an error there; a compiled kernel cannot, and must not read foreign memory instead.
"""

from __future__ import annotations

from typing import Any

from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.evaluate import At, index_function
from graphc.backends.tvm.index_functions.views import dim_of
from graphc.backends.tvm.kernel import Expr, Index, integer
from graphc.backends.tvm.operations import arguments, dtype_of, name_of, rank_of, shape_of
from graphc.tensor_type import Size

INDEX = ("aten.index.Tensor", "aten._unsafe_index.Tensor")


def legal(at: At, position: Expr, size: Size) -> Expr:
    """A position along a dimension: counted from the end where negative, held inside."""
    position = T.Bind(T.cast(position, "int64"))
    end = at.size(size)
    wrapped = T.Select(position < integer(0), position + end, position)
    return T.Bind(T.max(integer(0), T.min(end - 1, wrapped)))


@index_function("aten.embedding.default")
def _embedding(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    *position, column = index
    return at(args["weight"], [legal(at, at(args["indices"], position), shape_of(args["weight"])[0]), column])


@index_function("aten.index_select.default")
def _index_select(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    dim = dim_of(args["dim"], len(index))
    inner = list(index)
    positions = args["index"]
    where = at(positions, [index[dim]] if rank_of(positions) else [])
    inner[dim] = legal(at, where, shape_of(args["self"])[dim])
    return at(args["self"], inner)


@index_function("aten.gather.default")
def _gather(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    dim = dim_of(args["dim"], len(index))
    inner = list(index)
    if index:
        inner[dim] = legal(at, at(args["index"], index), shape_of(args["self"])[dim])
    return at(args["self"], inner)


@index_function(*INDEX)
def _index(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    source, tensors = args["self"], list(args["indices"])
    shape = shape_of(source)
    tensors += [None] * (len(shape) - len(tensors))
    given = [dim for dim, tensor in enumerate(tensors) if tensor is not None]
    rank = max(rank_of(tensors[dim]) for dim in given)
    # The broadcast index dimensions stand where the first index stood, or in front where the indices are apart.
    together = given == list(range(given[0], given[-1] + 1))
    first = given[0] if together else 0
    broadcast = list(index)[first : first + rank]
    rest = iter([*list(index)[:first], *list(index)[first + rank :]])
    inner = []
    for dim, tensor in enumerate(tensors):
        if tensor is None:
            inner.append(next(rest))
            continue
        sizes = shape_of(tensor)
        tail = broadcast[rank - len(sizes) :]
        where = at(tensor, [integer(0) if size == 1 else i for size, i in zip(sizes, tail, strict=True)])
        inner.append(legal(at, where, shape[dim]))
    return at(source, inner)


def selects_by_truth(node: fx.Node) -> bool:
    """Whether an index is a boolean mask, whose result has a size that depends on data."""
    if name_of(node) not in INDEX:
        return False
    return any(tensor is not None and dtype_of(tensor) == "bool" for tensor in arguments(node)["indices"])
