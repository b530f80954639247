"""Depthwise convolutions, float and integer: a vector of channels at a time over a padded channels-last image.

One filter a channel leaves no matrix to multiply. A tile of neighbouring columns shares the vectors of weights.
"""

from __future__ import annotations

from typing import Any

from tvm.tirx.script import builder as T

from graphc.backends.tvm.geometry import Geometry
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer, store_vector, vector
from graphc.backends.tvm.loops import PARALLEL_WORK, unflatten, vector_loop
from graphc.backends.tvm.operations import dtype_of, name_of, rank_of
from graphc.backends.tvm.sizes import product
from graphc.backends.tvm.templates import convolution
from graphc.backends.tvm.templates.convolution import source_image
from graphc.backends.tvm.templates.multiply_accumulate import MultiplyAccumulate
from graphc.backends.tvm.templates.register_tile import store_result
from graphc.backends.tvm.templates.right_operand import RightOperand

NAME = "depthwise convolution"
OPERATORS = convolution.OPERATORS


def matches(group: Group, isa: InstructionSet) -> str | None:
    reason = convolution.matches(group, isa)
    if reason is not None:
        return reason
    g = Geometry.of(group.core)
    if not (g.groups == g.channels == g.filters) or g.groups == 1 or g.spread != (1, 1):
        return "not one filter for each channel"
    if not all(isinstance(size, int) for size in g.result):
        return "dynamic image size"
    return None


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.core
    g = Geometry.of(anchor)
    floating = name_of(anchor) == "aten.convolution.default"
    dtype = "float32" if floating else "int32"
    lanes = k.isa.lanes("float32")
    stored = "float32" if floating else "int8"
    # Channels are the columns of a product whose taps are its only sum: the packing is that of a matrix product.
    packing = MultiplyAccumulate("depthwise", dtype_of(g.x), stored, dtype, 1, lanes, 8, 1, lambda sums, a, b: sums)
    image = source_image(group, k, g, packing, joined=False, run=g.channels)

    def element(matrix: Any, n: Any, tap: Any, j: Any) -> list[Any]:
        row, column = tap // g.kernel[1], tap % g.kernel[1]
        return [n, j, row, column] if rank_of(anchor) == 4 else [n, j, column]

    right = RightOperand(g.weight, 1, g.channels, g.kernel[0] * g.kernel[1], 1, element, "depthwise")
    weight = right.packed(k, packing)
    if floating:
        bias = None if g.bias is None else k.tensor(g.bias)
        correction = None if bias is None else lambda n: bias.load([n])
    else:
        correction = right.correction(k, g.bias, -g.zero)

    taps = g.kernel[0] * g.kernel[1]
    width = int(g.result[1])
    columns = min(width, 8 if k.isa.registers == 32 else 6)
    wide = lanes > 1 and image.strides[1].value == 1

    def tile(n: Expr, y: Expr, x: Expr, block: Expr, count: int, first: Expr) -> None:
        """`columns` neighbouring results for `count` channels from `first` on."""
        sums = k.local(columns * count, dtype)
        for c in range(columns):
            _store(sums, c * count, count, _all(count, dtype, 0))
        with k.loop(g.kernel[0]) as i, k.loop(g.kernel[1]) as j:
            at = ((block * taps) + i * g.kernel[1] + j) * lanes + (first - block * lanes)
            filters = T.Bind(_load(weight, at, count))
            for c in range(columns):
                row, column = y * g.stride[0] + i * g.dilation[0], (x + c) * g.stride[1] + j * g.dilation[1]
                pixel = _load(image.buffer, image.offset([n, first, row, column]), count)
                term = pixel * filters if floating else _widened(pixel, filters, count)
                _store(sums, c * count, count, _load(sums, integer(c * count), count) + term)
        results = k.local(columns * count, dtype)
        for c in range(columns):
            _store(results, c * count, count, _load(sums, integer(c * count), count))
        with k.loop(columns) as c:

            def store(lane: Expr) -> None:
                channel = first + lane
                total = results[c * count + lane]
                if correction is not None:
                    total = total + correction(channel)
                index = [n, channel, y, x + c] if rank_of(anchor) == 4 else [n, channel, x + c]
                store_result(group, k, index, total)

            vector_loop(k, count, count, store)

    extents = [k.size(g.batch), k.size(g.result[0])]
    tiles = -(-width // columns)
    parallel = k.ranges.maximum(product([g.batch, *g.result, g.channels])) * taps >= PARALLEL_WORK
    with k.loop(extents[0] * extents[1], parallel) as flat:
        n, y = unflatten(flat, extents)
        with k.loop(tiles) as number:
            x = T.Bind(T.min(number * columns, integer(width - columns)))
            if wide:
                with k.loop(g.channels // lanes) as block:
                    tile(n, y, x, block, lanes, block * lanes)
            rest = g.channels % lanes if wide else g.channels
            with k.loop(rest) as lane:
                channel = lane + (g.channels - rest)
                tile(n, y, x, channel // lanes, 1, channel)


def _all(count: int, dtype: str, value: int) -> Expr:
    number = T.cast(T.int32(value), dtype)
    return T.broadcast(number, count) if count > 1 else number


def _load(buffer: Any, start: Expr, count: int) -> Expr:
    return vector(buffer, start, count) if count > 1 else buffer[start]


def _store(buffer: Any, start: int, count: int, value: Expr) -> None:
    if count > 1:
        store_vector(buffer, integer(start), count, value)
    else:
        T.buffer_store(buffer, value, [integer(start)])


def _widened(pixel: Expr, filters: Expr, count: int) -> Expr:
    """The product of 8-bit integers: exact in 16 bits, added up in 32."""
    suffix = f"x{count}" if count > 1 else ""
    return T.cast(T.cast(pixel, f"int16{suffix}") * T.cast(filters, f"int16{suffix}"), f"int32{suffix}")
