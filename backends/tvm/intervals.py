"""Where integer values of a graph can lie, as far as its operators say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import fx

from graphc.backends.tvm.operations import arguments, dtype_of, name_of, rank_of, shape_of

Interval: TypeAlias = tuple[int, int]  # both ends included
Intervals: TypeAlias = "tuple[NDArray[np.int64], NDArray[np.int64]]"
Array: TypeAlias = Callable[[fx.Node], "NDArray[Any] | None"]

# The dimension along which a layer has its channels.
_LAYERS = {"graphc.integer_convolution.default": 1, "graphc.integer_linear.default": -1}


def interval(node: fx.Node, array: Array) -> Interval:
    """The least and the largest value that an element of an integer node can have.

    array(node): the value of a stored node, None where it is not known at compile time.
    """
    low, high = along(node, None, array)
    return int(low.min()), int(high.max())


def along(node: fx.Node, axis: int | None, array: Array) -> Intervals:
    """The interval of each index of the dimension `axis` where the operator tells them apart, else one for all."""
    limits = np.iinfo(dtype_of(node))
    found = _computed(node, axis, array)
    if found is None or (found[0] < limits.min).any() or (found[1] > limits.max).any():  # sums wrap round
        return _one(limits.min, limits.max)
    return found


def _one(low: int, high: int) -> Intervals:
    return np.array([low], np.int64), np.array([high], np.int64)


def _computed(node: fx.Node, axis: int | None, array: Array) -> Intervals | None:
    """What the operator says, or None where it says no more than the type does."""
    if node.op != "call_function":
        return None
    args, name = arguments(node), name_of(node)
    if name in _LAYERS:
        found = _layer(args, array)
        same = axis is not None and (axis - _LAYERS[name]) % rank_of(node) == 0
        return found if found is None or same else (found[0].min(keepdims=True), found[1].max(keepdims=True))
    if name == "graphc.integer_sum_pool2d.default":
        low, high = (math.prod(args["kernel"]) * (end - args["x_zero"]) for end in interval(args["x"], array))
        return _one(min(low, 0), max(high, 0))
    if name == "aten.sum.dim_IntList":
        shape = shape_of(args["self"])
        sizes = [shape[dim] for dim in args["dim"] or range(len(shape))]
        if not all(isinstance(size, int) for size in sizes):
            return None
        return _one(*(math.prod(map(int, sizes)) * end for end in interval(args["self"], array)))
    if name == "aten.add.Tensor" and args["alpha"] == 1 and isinstance(args["other"], fx.Node):
        return _one(*map(sum, zip(interval(args["self"], array), interval(args["other"], array), strict=True)))
    if name == "graphc.rescale.default" and dtype_of(node) != "int32":  # 8 bits: its input tells little more
        return _one(args["qmin"], args["qmax"])
    if name == "graphc.rescale.default":
        first, last = (np.clip(end, args["qmin"], args["qmax"]) for end in unclamped(args, array))
        return first.min(keepdims=True), last.max(keepdims=True)
    return None


def _layer(args: dict[str, Any], array: Array) -> Intervals | None:
    weight, bias = array(args["weight"]), None if args["bias"] is None else array(args["bias"])
    if weight is None or (bias is None) != (args["bias"] is None):
        return None
    low, high = (end - args["x_zero"] for end in interval(args["x"], array))
    low, high = min(low, 0), max(high, 0)  # padding is nought
    weight = weight.reshape(len(weight), -1).astype(np.int64)
    offset = 0 if bias is None else bias.astype(np.int64)
    positive, negative = np.maximum(weight, 0).sum(1), np.minimum(weight, 0).sum(1)
    return positive * low + negative * high + offset, positive * high + negative * low + offset


def unclamped(args: dict[str, Any], array: Array) -> Intervals:
    """What a rescale gives before it clamps, along its axis. `args`: the operator's arguments by name."""
    low, high = along(args["x"], args["axis"], array)
    multiplier, shift = array(args["multiplier"]), array(args["shift"])
    if multiplier is None or shift is None:
        return _one(-(1 << 62), 1 << 62)
    multiplier, shift = multiplier.ravel().astype(np.int64), shift.ravel().astype(np.int64)
    first, last = (
        (((end - args["input_zero"]) * multiplier + (1 << (shift - 1))) >> shift) + args["output_zero"]
        for end in (low, high)
    )
    return first, last
