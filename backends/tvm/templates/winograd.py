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

from graphc.backends.tvm.geometry import CONVOLUTIONS, Geometry
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.intervals import along
from graphc.backends.tvm.kernel import Expr, KernelBuilder, Packed, TensorView, integer, store_vector, vector
from graphc.backends.tvm.loops import unflatten, vector_loop
from graphc.backends.tvm.operations import arguments, dtype_of, is_stored, name_of, rank_of
from graphc.backends.tvm.scalars import number
from graphc.backends.tvm.sizes import product
from graphc.backends.tvm.templates import convolution, multiply_accumulate
from graphc.backends.tvm.templates.convolution import source_image
from graphc.backends.tvm.templates.minimal_filtering import (
    FILTERINGS,
    INTEGER_FILTERING,
    LARGEST_INTEGER,
    Filtering,
    on_both_sides,
)
from graphc.backends.tvm.templates.multiply_accumulate import MultiplyAccumulate
from graphc.backends.tvm.templates.register_tile import (
    Product,
    emit_product,
    emit_tile,
    store_result,
    tile_shape,
)

NAME = "convolution by Winograd"
OPERATORS = CONVOLUTIONS

# Fewer channels or tiles than this leave more to the transformations than the multiplications save.
FEWEST_CHANNELS = 32
FEWEST_TILES = 16
# Transformed filters of up to this many bytes stay in the last cache.
RESIDENT_BYTES = 6 << 20


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
    mac = multiplication(isa, dtype_of(g.x))
    if mac is None or not is_stored(g.weight) or g.spread != (1, 1) or arguments(anchor).get("transposed"):
        return "not by a stored weight, or of a type that gains nothing"
    if (g.kernel, g.stride, g.dilation, g.groups) != ((3, 3), (1, 1), (1, 1), 1):
        return "not a plain 3x3 kernel"
    if not isinstance(g.channels, int) or min(g.channels, g.filters) < FEWEST_CHANNELS:
        return "few channels"
    if g.channels % (mac.lanes * mac.depth) or g.filters % mac.width:
        return "channels that fill no vectors"
    size = tile_size(g)
    if size is None or (size != 4 and mac.accumulator == "int32"):
        return "an image of few tiles, or one that they do not cover"
    return None


def multiplication(isa: InstructionSet, dtype: str) -> MultiplyAccumulate | None:
    """The multiply-add for transformed tiles of images of this type."""
    if dtype == "float32":
        return multiply_accumulate.floating(isa)
    return multiply_accumulate.words(isa) if dtype in ("int8", "uint8") else None


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
    anchor = group.core
    g = Geometry.of(anchor)
    mac, m = multiplication(k.isa, dtype_of(g.x)), tile_size(g)
    assert mac is not None and m is not None
    filtering = INTEGER_FILTERING
    if mac.accumulator == "float32":
        filtering = FILTERINGS[k.parameter("tile", m, [size for size in (2, 4) if m % size == 0])]
    elif max(abs(int(end)) for ends in along(anchor, 1, k.around.known) for end in ends) >= LARGEST_INTEGER:
        k.template = convolution.NAME
        convolution.emit(group, k)
        return
    area = filtering.taps**2
    k.reason = f"F({filtering.m}x{filtering.m}, 3x3): filters transformed at load"
    reads = MultiplyAccumulate("winograd", dtype_of(g.x), "", "", 1, mac.lanes, 1, 1, mac.step)
    image = source_image(group, k, g, reads, joined=False, run=g.channels)
    size = area * g.filters * g.channels * np.dtype(mac.right).itemsize
    fused = k.parameter("fused", int(size <= RESIDENT_BYTES), (0, 1))

    def transform(builder: KernelBuilder, source: TensorView, target: tirx.Buffer) -> None:
        transform_filters(builder, mac, filtering, bool(fused), source, target)

    key = ("winograd", filtering.m, mac.name, mac.width, fused)
    filters = k.packed(Packed(g.weight, key, size, transform, mac.right))
    (in_blocks if fused else in_steps)(Work(group, k, mac, Tiles(g, filtering), image, filters))


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
            kind = mac.accumulator
            taps = [
                [T.Bind(T.cast(source.load([n, c, integer(i), integer(j)]), kind)) for j in range(3)] for i in range(3)
            ]
            result = on_both_sides(filtering.filter, taps)
            for number, value in enumerate(item for row in result for item in row):
                matrix = panel * area + number if fused else integer(number * panels) + panel
                at = ((matrix * steps + step) * mac.width + lane) * mac.depth + part
                T.buffer_store(target, T.cast(value, mac.right), [at])


@dataclass(frozen=True)
class Work:
    """One kernel: what it reads, and how."""

    group: Group
    k: KernelBuilder
    mac: MultiplyAccumulate
    tiles: Tiles
    image: TensorView
    filters: tirx.Buffer

    def forward(self, which: Expr, place: Callable[[int, Expr], Expr], target: tirx.Buffer) -> None:
        """B^T d B of one tile; element (i, channel) of it goes to place(i, channel)."""
        taps, g = self.tiles.filtering.taps, self.tiles.g
        n, y, x = self.tiles.corner(self.k, which)

        def pixel(i: int, j: int, c: Expr) -> Expr:
            value = T.cast(self.image.load([n, c, y + i, x + j]), self.mac.left)
            return T.Bind(value - number(value, g.zero) if g.zero else value)

        def transform(c: Expr) -> None:
            tile = [[pixel(i, j, c) for j in range(taps)] for i in range(taps)]
            result = on_both_sides(self.tiles.filtering.forward, tile)
            for i, value in enumerate(item for row in result for item in row):
                T.buffer_store(target, value, [place(i, c)])

        vector_loop(self.k, g.channels, self.k.isa.lanes(self.mac.left), transform)

    def backward(self, which: Expr, first: Expr, count: int, sums: tirx.Buffer, place: Callable[[int], Expr]) -> None:
        """The results of one tile for `count` filters from `first` on, and the epilogue. The sums of element i and
        these filters begin at place(i)."""
        filtering, g, k, lanes = self.tiles.filtering, self.tiles.g, self.k, self.mac.lanes
        n, y, x = self.tiles.corner(k, which)
        bias = None if g.bias is None else k.tensor(g.bias)
        results = k.local(filtering.m**2 * lanes, self.mac.accumulator)
        with k.loop(count // lanes) as block:
            values = [T.Bind(vector(sums, place(i) + block * lanes, lanes)) for i in range(filtering.taps**2)]
            rows = [values[i : i + filtering.taps] for i in range(0, len(values), filtering.taps)]
            for i, row in enumerate(on_both_sides(filtering.backward, rows)):
                for j, value in enumerate(row):
                    slot = integer((i * filtering.m + j) * lanes)
                    store_vector(results, slot, lanes, filtering.finish(value, i, j))
            for spot in range(filtering.m**2):
                with k.vectorized(lanes) as lane:
                    channel = first + block * lanes + lane
                    total = results[spot * lanes + lane]
                    total = total if bias is None else total + bias.load([channel])
                    store_result(self.group, k, [n, channel, y + spot // filtering.m, x + spot % filtering.m], total)


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
                base, steps = (panel * area + i) * (g.channels * mac.width), integer(g.channels // mac.depth)
                corner, ahead = (integer(0), integer(0)), (base + g.channels * mac.width, mac.width * mac.depth)
                emit_tile(k, mac, inputs, w.filters, shape, [i], panel, base, steps, corner, (1, rows), ahead)
            with k.loop(rows) as row:
                w.backward(start + row, first, mac.width, sums, lambda i: sum_at(i, row))

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
        w.backward(number, integer(0), g.filters, sums, lambda i: (i * tiles + number) * g.filters)
