"""linear with a weight of grouped integers, read as it is stored: at few rows its bytes are what bounds the layer.

    out[m, n] = sum over groups g of scale[n, g] * (sum over columns k of g of (code[n, k] - zero[n, g]) * x[m, k])

Threads share the panels of weight rows; each is read once, in order, and every tile of activation rows meets it in
cache, decoded anew in registers. With dynamically quantized activations the inner sums are dot products of bytes, exact
in int32, and the zero points' share comes from the activations' sums; without, codes become floats.
"""

from __future__ import annotations

import numpy as np
import tvm.tirx as tirx
from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import weight_formats
from graphc.backends.tvm.evaluate import At, broadcast
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, Packed, TensorView, integer
from graphc.backends.tvm.loops import PARALLEL_WORK, nest, unflatten, vector_loop
from graphc.backends.tvm.operations import arguments, dtype_of, shape_of
from graphc.backends.tvm.sizes import contiguous, product
from graphc.backends.tvm.templates.byte_products import byte_product
from graphc.backends.tvm.templates.compressed_tiles import Activations, Weight, byte_tile, float_tile
from graphc.backends.tvm.templates.dynamic_quantization import group_scale, quantize_group, rounded
from graphc.backends.tvm.templates.register_tile import store_result, strips
from graphc.backends.tvm.templates.weight_codes import Array, Codes
from graphc.backends.tvm.weight_formats import CompressedLinear, GroupedIntegers, unpacking_code
from graphc.tensor_type import Size

NAME = "compressed product"
OPERATORS: tuple[str, ...] = ()


def matches(group: Group, isa: InstructionSet) -> str | None:
    return None if _layer(group) is not None else "no weight of grouped integers"


def _layer(group: Group) -> CompressedLinear | None:
    found = weight_formats.compressed(group.anchor) if group.absorbed and group.anchor is not None else None
    return found if found is not None and isinstance(found.weight, GroupedIntegers) else None


def emit(group: Group, k: KernelBuilder) -> None:
    layer, anchor = _layer(group), group.core
    assert layer is not None and isinstance(layer.weight, GroupedIntegers)
    lanes = k.isa.lanes("float32")
    columns, depth = (int(size) for size in shape_of(arguments(anchor)["weight"]))
    integers = byte_product(k.isa, layer.weight.bits) if layer.activation else None
    vectors = k.parameter("vectors", max(2, 16 // lanes), (1, 2, 4, 8))
    codes = Codes(layer.weight.bits, lanes, min(vectors, -(-columns // lanes)))
    weight = _packed(k, layer.weight, codes, depth, integers is not None and integers.signed)
    x = layer.activation.x if layer.activation else arguments(anchor)["input"]
    rows: Size = product(shape_of(x)[:-1])
    activations = _activations(k, group, layer, x, rows, weight, integers is not None)
    largest = k.ranges.maximum(rows)
    # Sums in integers and in floats, beside what is decoded.
    free = k.isa.registers - 4 - codes.vectors
    most = max(1, min(14, free // (codes.vectors * (2 if integers else 1))))
    # The fewest tiles; among equals the smallest.
    height = k.parameter("rows", min(range(1, most + 1), key=lambda r: -(-largest // r)), tuple(range(1, 15)))
    sizes = [k.size(size) for size in shape_of(anchor)[:-1]]

    def store(row: Expr, n: Expr, value: Expr) -> None:
        index = [*unflatten(row, sizes), n]
        bias = arguments(anchor)["bias"]
        if bias is not None:
            value = value + At(k, group.nodes)(bias, broadcast(index, bias))
        store_result(group, k, index, value)

    parallel = largest * columns * depth // 32 >= PARALLEL_WORK
    with k.loop(-(-columns // codes.width), parallel) as panel:
        for number, edge, count in strips(k, rows, height, k.ranges.minimum(rows) >= height):
            with k.loop(number) as position:
                row = T.Bind(edge(position))
                if integers is not None:
                    tile = byte_tile(k, weight, activations, integers, panel, row, count)
                else:
                    tile = float_tile(k, weight, activations, panel, row, count)
                first = panel * codes.width
                valid: int | Expr = codes.width
                if columns % codes.width:
                    valid = T.min(integer(codes.width), integer(columns) - first)
                with k.loop(count) as i:
                    offset, at = i * codes.width, row + i
                    vector_loop(k, valid, lanes, lambda n: store(at, first + n, tile[offset + n]))  # noqa: B023


def _packed(k: KernelBuilder, stored: GroupedIntegers, codes: Codes, depth: int, signed: bool) -> Weight:
    """The weight as the kernel reads it. signed: 8-bit codes as int8."""
    rows, groups, width = int(shape_of(stored.codes)[0]), depth // stored.group, codes.width
    given = None if stored.zero is None else k.around.array(stored.zero)
    zero: Array = np.zeros(1, np.int32) if given is None else given.astype(np.int32)
    flip = 0  # of the bits of a stored code
    if dtype_of(stored.codes) == "int8":
        flip, zero = flip ^ 128, zero + 128
    if stored.bits == 8 and signed:
        flip, zero = flip ^ 128, zero - 128

    def by_panel(array: Array, note: str) -> tirx.Buffer:
        """[rows, groups], or what broadcasts to it, as [panel, group, row of the panel]; a single value as it is."""
        if array.size > 1:
            padded = np.zeros((-(-rows // width) * width, groups), array.dtype)
            padded[:rows] = array
            array = padded.reshape(-1, width, groups).transpose(0, 2, 1)
        return k.constant(array.reshape(-1), f"{stored.codes.name}: {note}")

    scale = k.around.stored(stored.scale)
    zeros = int(zero.ravel()[0]) if zero.size == 1 else by_panel(zero.astype(np.int8 if signed else np.uint8), "zeros")
    packed, scales = _codes(k, stored, codes, depth, flip), by_panel(scale, "scales")
    return Weight(codes, packed, scales, scale.size == 1, zeros, stored.group, depth, k.isa.target)


def _codes(k: KernelBuilder, stored: GroupedIntegers, codes: Codes, depth: int, flip: int) -> tirx.Buffer:
    """The codes in panels, their bits flipped."""
    *unpacked, _ = stored.nodes
    read = unpacked[0] if unpacked else stored.codes
    rows = int(shape_of(read)[0])
    size = codes.bytes_of(rows, depth)
    if not k.packs_at_load(stored.codes, size, unpacking_code(read)):
        packed = codes.pack(k.around.stored(read).view(np.uint8) ^ flip)
        return k.constant(packed.reshape(-1), f"{stored.codes.name} in panels of {codes.width}")

    def fill(builder: KernelBuilder, source: TensorView, target: tirx.Buffer) -> None:
        at = At(builder, unpacked)

        def code(row: Expr, column: Expr, inside: Expr) -> Expr:
            with at.guard(inside):
                value = at(read, [row, column])
            value = T.reinterpret("uint8", value) if dtype_of(stored.codes) == "int8" else value
            return T.bitwise_xor(value, T.uint8(flip)) if flip else value

        codes.emit_pack(builder, target, rows, depth, code)

    return k.packed(Packed(stored.codes, ("panels", codes, flip), size, fill, "uint8"))


def _activations(
    k: KernelBuilder,
    group: Group,
    layer: CompressedLinear,
    x: fx.Node,
    rows: Size,
    weight: Weight,
    quantized: bool,
) -> Activations:
    """The activations as the kernel reads them: rows of whole units, as they lie where that is so."""
    shape = shape_of(x)
    depth, width = weight.depth, -(-weight.depth // weight.codes.unit) * weight.codes.unit
    dynamic = layer.activation
    if dynamic is None and x not in group.nodes and width == depth and k.strides(x) == contiguous(shape):
        return Activations(k.tensor(x).buffer, width, depth)
    sizes = [k.size(size) for size in shape[:-1]]
    size = dynamic.group if dynamic else depth
    part = min(size, weight.group)
    elements = k.workspace(rows * width, "int8" if quantized else "float32")
    scales = k.workspace(rows * (depth // size), "float32") if quantized else None
    zero = weight.zeros if isinstance(weight.zeros, int) else None
    sums = k.workspace(rows * (depth // part), "int32") if quantized and zero != 0 else None

    def one(index: list[Expr]) -> None:
        row, number = index
        outer, first = unflatten(row, sizes), number * size

        def read(j: Expr) -> Expr:
            return At(k, group.nodes)(x, [*outer, first + j])

        if dynamic is None:
            vector_loop(k, depth, k.isa.lanes("float32"), lambda j: put(row * width + j, read(j)))
            _pad(k, elements, row * width + depth, width - depth)
            return
        scale = group_scale(k, size, read)
        if scales is None:

            def decoded(j: Expr) -> Expr:
                return rounded(read(j), scale) * scale

            vector_loop(k, size, k.isa.lanes("float32"), lambda j: put(row * width + first + j, decoded(j)))
        else:
            T.buffer_store(scales, scale, [row * (depth // size) + number])
            with k.loop(size // part) as piece:
                start = piece * part
                total = quantize_group(
                    k, part, lambda j: rounded(read(start + j), scale), elements, row * width + first + start
                )
                if sums is not None:
                    share = total if zero is None else total * T.int32(-zero)
                    T.buffer_store(sums, share, [row * (depth // part) + number * (size // part) + piece])
        if width > depth:
            _pad(k, elements, row * width + depth, width - depth)

    def put(at: Expr, value: Expr) -> None:
        T.buffer_store(elements, value, [at])

    nest(k, [rows, depth // size], one, cost=size)
    return Activations(elements, width, size, scales, sums)


def _pad(k: KernelBuilder, buffer: tirx.Buffer, start: Expr, count: int) -> None:
    """Noughts behind a row whose columns do not fill the last unit."""
    with k.loop(count) as j:
        T.buffer_store(buffer, T.cast(T.int32(0), str(buffer.ty.dtype)), [start + j])
