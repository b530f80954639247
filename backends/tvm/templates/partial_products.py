"""Tables of partial products, quantized: quantize_dynamic(partial_products(x, codebook)) in one kernel.

    p[m, j, c] = codebook[c] . x[m, j*d : (j+1)*d]
    scale[m, g] = max |p| / 127 over a group of j,  q = round(p / scale)

A few codewords stay in registers while they meet every piece of a group; the group is scaled while the cache holds it.
"""

from __future__ import annotations

import numpy as np
from tvm.tirx.script import builder as T

from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import Expr, KernelBuilder, integer, store_vector, vector
from graphc.backends.tvm.loops import PARALLEL_WORK, unflatten
from graphc.backends.tvm.operations import arguments, shape_of
from graphc.backends.tvm.sizes import product
from graphc.backends.tvm.tabulated import quantized_products

NAME = "partial products"
OPERATORS = ("graphc.quantize_dynamic.default#0",)
# Added to a number below 2^22 in magnitude, it leaves the number rounded half to even in the low bits.
_ROUNDING = 1.5 * 2.0**23


def matches(group: Group, isa: InstructionSet) -> str | None:
    if quantized_products(group.output) != group.nodes:
        return "no quantized partial products"
    codebook = arguments(group.nodes[0])["codebook"]
    if codebook.op != "get_attr":
        return "a codebook that is no stored weight"
    *spaces, codewords, _ = map(int, shape_of(codebook))
    if codewords % isa.lanes("float32"):
        return f"{codewords} codewords, which do not fill vectors of {isa.lanes('float32')}"
    if int(shape_of(group.nodes[2])[-1]) % (spaces[0] if spaces else 1):
        return f"tables of different codebooks among the {spaces[0]} that share a scale"
    return None


def emit(group: Group, k: KernelBuilder) -> None:
    products, _, scale_node, q_node = group.nodes
    args = arguments(products)
    codebook = k.around.array(args["codebook"])
    assert codebook is not None
    codewords, d = codebook.shape[-2:]
    pieces = arguments(q_node)["group"] // codewords
    lanes = k.isa.lanes("float32")
    # Codewords in half of the registers, at most; the rest is for sums and largest magnitudes.
    together = max(1, min(codewords // lanes, 4 if k.isa.registers == 32 else 2, k.isa.registers // 2 // d))
    together = next(n for n in range(together, 0, -1) if codewords // lanes % n == 0)
    packed = codebook.astype(np.float32).reshape(-1, codewords // lanes, lanes, d).transpose(0, 1, 3, 2)
    book = k.constant(packed, f"{args['codebook'].name} transposed")
    x, q, scale = k.tensor(args["x"]), k.tensor(q_node), k.tensor(scale_node)
    leading = shape_of(args["x"])[:-1]
    sizes = [k.size(size) for size in leading]
    groups = int(shape_of(scale_node)[-1])
    rows = k.size(product(leading))
    work = k.ranges.maximum(product(leading)) * groups * pieces * codewords * d // lanes

    with k.loop(rows * groups, parallel=work >= PARALLEL_WORK // 8) as flat:
        row, number = T.truncdiv(flat, integer(groups)), T.truncmod(flat, integer(groups))
        own: int | Expr = 0  # where the codebook of these pieces starts
        if len(packed) > 1:
            own = T.Bind(T.truncdiv(number, integer(groups // len(packed))) * (codewords * d))
        position = unflatten(row, sizes)
        sums = k.local(pieces * codewords, "float32")
        peaks = k.local(together * lanes, "float32")
        for i in range(together):
            store_vector(peaks, integer(i * lanes), lanes, T.broadcast(T.float32(0), lanes))
        with k.loop(codewords // (together * lanes)) as part:
            words = [
                [T.Bind(vector(book, own + ((part * together + i) * d + t) * lanes, lanes)) for t in range(d)]
                for i in range(together)
            ]
            with k.loop(pieces) as piece:
                start = (number * pieces + piece) * d
                given = [T.Bind(T.broadcast(x.load([*position, start + t]), lanes)) for t in range(d)]
                for i in range(together):
                    total = words[i][0] * given[0]
                    for t in range(1, d):
                        total = total + words[i][t] * given[t]
                    total = T.Bind(total)
                    store_vector(sums, piece * codewords + (part * together + i) * lanes, lanes, total)
                    slot = integer(i * lanes)
                    store_vector(peaks, slot, lanes, T.max(vector(peaks, slot, lanes), _magnitude(total, lanes)))
        largest = k.local(1, "float32")
        T.buffer_store(largest, T.float32(0), [integer(0)])
        with k.loop(together * lanes) as lane:
            T.buffer_store(largest, T.max(largest[integer(0)], peaks[lane]), [integer(0)])
        top = T.Bind(largest[integer(0)])
        unit = T.Bind(T.Select(top > T.float32(0), top / T.float32(127), T.float32(1)))
        scale.store([*position, number], unit)
        inverse = T.Bind(T.broadcast(T.float32(1) / unit, lanes))
        target = T.Bind(q.offset([*position, number * (pieces * codewords)]))
        with k.loop(pieces * codewords // lanes) as step:
            moved = vector(sums, step * lanes, lanes) * inverse + T.broadcast(T.float32(_ROUNDING), lanes)
            rounded = T.cast(T.reinterpret(f"int32x{lanes}", moved), f"int8x{lanes}")
            store_vector(q.buffer, target + step * lanes, lanes, rounded)


def _magnitude(value: Expr, lanes: int) -> Expr:
    bits = T.bitwise_and(T.reinterpret(f"int32x{lanes}", value), T.broadcast(T.int32(0x7FFFFFFF), lanes))
    return T.reinterpret(f"float32x{lanes}", bits)
