"""3x3 convolutions by minimal filtering: tiles of m x m results from (m + 2)^2 products a channel instead of 9 m^2.

    y = A^T [sum over channels of (G g G^T) * (B^T d B)] A

for each tile d of the input and each filter g (Winograd 1980; Lavin & Gray, Fast Algorithms for Convolutional Neural
Networks, 2015). The sums over channels are (m + 2)^2 matrix products, of all tiles by all filters. Filters are
transformed when the model is loaded, for they grow by (m + 2)^2 / 9. F(4x4) takes 4 times fewer multiplications than
the definition, F(2x2) 2.25 times; results differ from it by rounding, up to 1e-5 of the largest.

Filters that stay in the cache are read again and again: each thread takes blocks of tiles through all three steps.
Larger ones are read once: every step is done for the whole image, and threads share the matrices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tvm.tirx as tirx
from tvm.tirx.script import builder as T

from graphc.backends.tvm.geometry import Geometry
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, Packed, TensorView, integer, store_vector
from graphc.backends.tvm.loops import unflatten, vector_loop
from graphc.backends.tvm.operations import arguments, dtype_of, is_stored, name_of, rank_of
from graphc.backends.tvm.sizes import product
from graphc.backends.tvm.templates import multiply_accumulate
from graphc.backends.tvm.templates.convolution import source_image
from graphc.backends.tvm.templates.multiply_accumulate import MultiplyAccumulate
from graphc.backends.tvm.templates.register_tile import (
    Product,
    emit_product,
    emit_tile,
    store_result,
    tile_shape,
)

NAME = "convolution by Winograd"
OPERATORS = ("aten.convolution.default",)

# Fewer channels or tiles than this leave more to the transformations than the multiplications save.
FEWEST_CHANNELS = 32
FEWEST_TILES = 16
# Transformed filters of up to this many bytes stay in the last cache.
RESIDENT_BYTES = 6 << 20

Values = list[Expr]


@dataclass(frozen=True)
class Filtering:
    """F(m, 3): `forward` is B^T, m + 2 values to as many; `filter` G, 3 to m + 2; `backward` A^T, m + 2 to m."""

    m: int
    forward: Callable[[Values], Values]
    filter: Callable[[Values], Values]
    backward: Callable[[Values], Values]

    @property
    def taps(self) -> int:
        return self.m + 2


def _forward2(d: Values) -> Values:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _filter2(g: Values) -> Values:
    even, odd = (g[0] + g[2]) * 0.5, g[1] * 0.5
    return [g[0], even + odd, even - odd, g[2]]


def _backward2(m: Values) -> Values:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _forward4(d: Values) -> Values:
    """Points 0, 1, -1, 2, -2 and infinity; pairs of opposite points share their even and their odd part."""
    even1, odd1 = T.Bind(d[4] - d[2] * 4), T.Bind(d[3] - d[1] * 4)
    even2, odd2 = T.Bind(d[4] - d[2]), T.Bind((d[3] - d[1]) * 2)
    ends = d[4] + (d[0] * 4 - d[2] * 5), d[5] + (d[1] * 4 - d[3] * 5)
    return [ends[0], even1 + odd1, even1 - odd1, even2 + odd2, even2 - odd2, ends[1]]


def _filter4(g: Values) -> Values:
    even1, odd1 = (g[0] + g[2]) * (-1 / 6), g[1] * (-1 / 6)
    even2, odd2 = g[0] * (1 / 24) + g[2] * (1 / 6), g[1] * (1 / 12)
    return [g[0] * 0.25, even1 + odd1, even1 - odd1, even2 + odd2, even2 - odd2, g[2]]


def _backward4(m: Values) -> Values:
    even1, odd1 = T.Bind(m[1] + m[2]), T.Bind(m[1] - m[2])
    even2, odd2 = T.Bind(m[3] + m[4]), T.Bind(m[3] - m[4])
    return [m[0] + even1 + even2, odd1 + odd2 * 2, even1 + even2 * 4, m[5] + odd1 + odd2 * 8]


FILTERINGS = {
    2: Filtering(2, _forward2, _filter2, _backward2),
    4: Filtering(4, _forward4, _filter4, _backward4),
}


def on_both_sides(transform: Callable[[Values], Values], values: list[Values]) -> list[Values]:
    """M x M^T for a matrix x, where `transform` is M x."""
    columns = [[T.Bind(item) for item in transform(list(column))] for column in zip(*values, strict=True)]
    return [[T.Bind(item) for item in transform(list(row))] for row in zip(*columns, strict=True)]


def tile_size(g: Geometry) -> int | None:
    """The largest tile that divides the result and leaves enough of them."""
    height, width = g.result
    if not isinstance(height, int) or not isinstance(width, int):
        return None
    fit = (m for m in (4, 2) if height % m == 0 and width % m == 0 and height * width // m**2 >= FEWEST_TILES)
    return next(fit, None)


def matches(group: Group, isa: InstructionSet) -> str | None:
    anchor = group.anchor
    if anchor is None or name_of(anchor) not in OPERATORS or rank_of(arguments(anchor)["weight"]) != 4:
        return "no convolution of images"
    g = Geometry.of(anchor)
    if dtype_of(g.x) != "float32" or not is_stored(g.weight) or arguments(anchor)["transposed"]:
        return "not of float32 by a stored weight"
    if (g.kernel, g.stride, g.dilation, g.groups) != ((3, 3), (1, 1), (1, 1), 1):
        return "not a plain 3x3 kernel"
    if not isinstance(g.channels, int) or min(g.channels, g.filters) < FEWEST_CHANNELS:
        return "few channels"
    if g.channels % isa.lanes("float32") or g.filters % multiply_accumulate.floating(isa).width:
        return "channels that fill no vectors"
    return None if tile_size(g) else "an image of few tiles, or one that they do not cover"


@dataclass(frozen=True)
class Tiles:
    """The tiles of a convolution's result, numbered image by image and row by row."""

    g: Geometry
    filtering: Filtering

    @property
    def extents(self) -> tuple[int, int]:
        m = self.filtering.m
        return int(self.g.result[0]) // m, int(self.g.result[1]) // m

    def corner(self, k: KernelBuilder, number: Expr) -> tuple[Expr, Expr, Expr]:
        """(image, y, x) of a tile's first result."""
        n, y, x = unflatten(number, [k.size(self.g.batch), *map(integer, self.extents)])
        m = self.filtering.m
        return T.Bind(n), T.Bind(y * m), T.Bind(x * m)


def emit(group: Group, k: KernelBuilder) -> None:
    anchor = group.anchor
    assert anchor is not None
    g = Geometry.of(anchor)
    mac = multiply_accumulate.floating(k.isa)
    m = tile_size(g)
    assert m is not None
    filtering = FILTERINGS[k.parameter("tile", m, [size for size in (2, 4) if m % size == 0])]
    tiles = Tiles(g, filtering)
    area = filtering.taps**2
    k.reason = f"F({filtering.m}x{filtering.m}, 3x3): filters transformed at load"
    reads = MultiplyAccumulate("winograd", "float32", "float32", "float32", 1, mac.lanes, 1, 1, mac.step)
    image = source_image(group, k, g, reads, joined=False, run=g.channels)
    size = area * g.filters * g.channels * np.dtype(mac.right).itemsize
    fused = k.parameter("fused", int(size <= RESIDENT_BYTES), (0, 1))

    def transform(builder: KernelBuilder, source: TensorView, target: tirx.Buffer) -> None:
        transform_filters(builder, mac, filtering, bool(fused), source, target)

    key = ("winograd", filtering.m, mac.name, mac.width, fused)
    filters = k.packed(Packed(g.weight, key, size, transform, mac.right))
    (in_blocks if fused else in_steps)(Work(group, k, mac, tiles, image, filters))


def transform_filters(
    k: KernelBuilder,
    mac: MultiplyAccumulate,
    filtering: Filtering,
    fused: bool,
    source: TensorView,
    target: tirx.Buffer,
) -> None:
    """[N, C, 3, 3] to [panel][(m + 2)^2][C][width] or, not `fused`, [(m + 2)^2][panel][C][width]: as they are read."""
    panels, steps = int(source.shape[0]) // mac.width, int(source.shape[1]) // mac.depth
    area = filtering.taps**2
    with k.loop(panels * steps, parallel=True) as flat:
        panel, step = unflatten(flat, [integer(panels), integer(steps)])
        with k.loop(mac.width) as lane, k.loop(mac.depth) as part:
            n, c = panel * mac.width + lane, step * mac.depth + part
            taps = [[T.Bind(source.load([n, c, integer(i), integer(j)])) for j in range(3)] for i in range(3)]
            result = on_both_sides(filtering.filter, taps)
            for number, value in enumerate(item for row in result for item in row):
                matrix = panel * area + number if fused else integer(number * panels) + panel
                at = ((matrix * steps + step) * mac.width + lane) * mac.depth + part
                T.buffer_store(target, value, [at])


@dataclass(frozen=True)
class Work:
    """One kernel: what it reads, and how."""

    group: Group
    k: KernelBuilder
    mac: MultiplyAccumulate
    tiles: Tiles
    image: TensorView
    filters: tirx.Buffer

    def forward(self, number: Expr, place: Callable[[int, Expr], Expr], target: tirx.Buffer) -> None:
        """B^T d B of one tile; element (i, channel) of it goes to place(i, channel)."""
        taps, g = self.tiles.filtering.taps, self.tiles.g
        n, y, x = self.tiles.corner(self.k, number)

        def vector(c: Expr) -> None:
            tile = [[T.Bind(self.image.load([n, c, y + i, x + j])) for j in range(taps)] for i in range(taps)]
            result = on_both_sides(self.tiles.filtering.forward, tile)
            for i, value in enumerate(item for row in result for item in row):
                T.buffer_store(target, value, [place(i, c)])

        vector_loop(self.k, g.channels, self.mac.lanes, vector)

    def backward(self, number: Expr, first: Expr, count: int, source: Callable[[int, Expr], Expr]) -> None:
        """The results of one tile for `count` filters from `first` on, and the epilogue."""
        filtering, g = self.tiles.filtering, self.tiles.g
        n, y, x = self.tiles.corner(self.k, number)
        bias = None if g.bias is None else self.k.tensor(g.bias)

        def vector(lane: Expr) -> None:
            sums = [
                [T.Bind(source(i * filtering.taps + j, lane)) for j in range(filtering.taps)]
                for i in range(filtering.taps)
            ]
            channel = first + lane
            offset = None if bias is None else T.Bind(bias.load([channel]))
            for i, row in enumerate(on_both_sides(filtering.backward, sums)):
                for j, value in enumerate(row):
                    total = value if offset is None else value + offset
                    store_result(self.group, self.k, [n, channel, y + i, x + j], total)

        vector_loop(self.k, count, self.mac.lanes, vector)


def in_blocks(w: Work) -> None:
    """Blocks of as many tiles as a register tile has rows, each from the image to the result."""
    k, mac, g = w.k, w.mac, w.tiles.g
    area, count = w.tiles.filtering.taps**2, w.tiles.extents[0] * w.tiles.extents[1]
    rows = tile_shape(1, count, mac.rows)[1]
    blocks, panels = -(-count // rows), g.filters // mac.width
    chunks = k.parameter("chunks", 4, (2, 4, 8, 16))
    inputs = k.workspace(chunks * area * rows * g.channels, mac.left)
    sums = k.workspace(chunks * area * rows * mac.width, mac.accumulator)
    total = k.size(g.batch) * blocks

    def block(chunk: Expr, start: Expr) -> None:
        """Tiles from `start` on, in the chunk's own memory."""

        def input_at(i: int | Expr, row: Expr) -> Expr:
            return ((chunk * area + i) * rows + row) * g.channels

        def sum_at(i: int | Expr, row: Expr) -> Expr:
            return ((chunk * area + i) * rows + row) * mac.width

        with k.loop(rows) as row:
            w.forward(start + row, lambda i, c: input_at(i, row) + c, inputs)
        with k.loop(panels) as panel:
            first = T.Bind(panel * mac.width)
            shape = Product(
                [area], 1, rows, g.filters, [1], g.channels,
                left=lambda batch, y, x, tap: input_at(batch[0], x),
                matrix=lambda batch: batch[0],
                store=lambda batch, y, x, n, value: store_vector(
                    sums, sum_at(batch[0], x) + (n - first), mac.lanes, value
                ),
                plain=True,
            )  # fmt: skip
            with k.loop(area) as i:
                base, size = (panel * area + i) * (g.channels * mac.width), integer(g.channels)
                corner, ahead = (integer(0), integer(0)), (base + g.channels * mac.width, mac.width)
                emit_tile(k, mac, inputs, w.filters, shape, [i], panel, base, size, corner, (1, rows), ahead)
            with k.loop(rows) as row:
                w.backward(start + row, first, mac.width, lambda i, n: sums[sum_at(i, row) + n])

    with k.loop(chunks, parallel=True) as chunk:
        first, past = (T.Bind(T.truncdiv((chunk + i) * total, integer(chunks))) for i in range(2))
        with k.loop(past - first) as number:
            n, position = unflatten(first + number, [k.size(g.batch), integer(blocks)])
            block(chunk, T.Bind(n * count + T.min(position * rows, integer(count - rows))))


def in_steps(w: Work) -> None:
    """All tiles transformed, then all products, then all results."""
    k, mac, g = w.k, w.mac, w.tiles.g
    area, count = w.tiles.filtering.taps**2, product([g.batch, w.tiles.extents[0] * w.tiles.extents[1]])
    tiles = k.size(count)
    inputs = k.workspace(product([area, count, g.channels]), mac.left)
    sums = k.workspace(product([area, count, g.filters]), mac.accumulator)
    with k.loop(tiles, parallel=True) as number:
        w.forward(number, lambda i, c: (i * tiles + number) * g.channels + c, inputs)
    shape = Product(
        [area], 1, count, g.filters, [1], g.channels,
        left=lambda batch, y, x, tap: (batch[0] * tiles + x) * g.channels,
        matrix=lambda batch: batch[0],
        store=lambda batch, y, x, n, value: store_vector(
            sums, (batch[0] * tiles + x) * g.filters + n, mac.lanes, value
        ),
        plain=True,
    )  # fmt: skip
    emit_product(k, mac, inputs, w.filters, shape, by_tiles=False)
    with k.loop(tiles, parallel=True) as number:
        w.backward(number, integer(0), g.filters, lambda i, n: sums[(i * tiles + number) * g.filters + n])
