"""bfloat16 against torch, on CPUs with and without instructions for it: conversions to the bit, products up to the
order of their sums."""

import math

import pytest
import torch

from graphc.backends.tvm import brain_float
from graphc.graph import Graph
from graphc.pipeline import PassContext, pipeline
from graphc.structure import Structure
from graphc.tensor_type import TensorType

aten = torch.ops.aten
RTOL = ATOL = 0
TARGETS = ["host", "x86-64:v2", "x86-64:v3", "x86-64:v4", "arm64", "arm64:max"]
torch.manual_seed(0)


def bf16(*shape):
    return torch.randn(*shape).to(torch.bfloat16)


def convert(x, dtype):
    return aten._to_copy.default, x, {"dtype": dtype}


def hard_numbers():
    """Ties in both directions, values about to overflow, infinities and NaN; no denormals."""
    bits = torch.arange(0x3F80_0000, 0x3F84_0000, 0x1000, dtype=torch.int32)
    near = torch.cat([bits, bits + 1, bits - 1, torch.tensor([0x7F7F_FFFF, 0x7F7F_7FFF, 0x7F80_0000, 0x7FFF_FFFF])])
    positive = torch.cat([near.to(torch.int32).view(torch.float32), torch.logspace(-37, 38, 997), torch.zeros(1)])
    return torch.cat([positive, -positive])


CASES = {
    "narrow": convert(hard_numbers(), torch.bfloat16),
    "widen": convert(hard_numbers().to(torch.bfloat16), torch.float32),
    "from integers": convert(torch.arange(-300, 300), torch.bfloat16),
    "to integers": convert(bf16(77) * 50, torch.int32),
    "moved": (aten.permute.default, bf16(3, 5, 17), [2, 0, 1]),
    "concatenated": (aten.cat.default, [bf16(3, 5), bf16(3, 18)], 1),
    "padded": (aten.constant_pad_nd.default, bf16(3, 5), [1, 2], 0.7),
    "looked up": (aten.embedding.default, bf16(9, 33), torch.tensor([[3, 1], [8, 8]])),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_moves_and_converts_as_torch_does(suite, name, target):
    suite.check(name, target)


def products():
    """A graph of every operator that multiplies bfloat16, and its inputs; results are float32."""
    torch.manual_seed(0)
    inputs = [
        bf16(5, 33), bf16(2, 9, 40), bf16(3, 9, 12), bf16(3, 12, 35), bf16(2, 6, 13, 11), bf16(2, 3, 9, 12),
        bf16(1, 64), bf16(2, 36, 9, 10),
    ]  # fmt: skip
    graph = Graph("products", Structure.of((tuple(inputs), {})), Structure.of((0,) * 9))
    x = [graph.add_input(f"x{i}", TensorType.of(tensor)) for i, tensor in enumerate(inputs)]

    def wide(node):
        return graph.call(aten._to_copy.default, node, dtype=torch.float32)

    def weight(*shape):
        scaled = torch.randn(*shape) / math.sqrt(math.prod(shape[1:]))
        return wide(graph.add_weight("w", scaled.to(torch.bfloat16)))

    def conv(image, filters, stride=1, padding=1, groups=1):
        sizes = [stride, stride], [padding, padding], [1, 1], False, [0, 0], groups
        return graph.call(aten.convolution.default, wide(image), filters, None, *sizes)

    bias = graph.add_weight("bias", torch.randn(70))
    graph.set_output(
        [
            graph.call(aten.linear.default, wide(x[0]), weight(70, 33), bias),
            graph.call(aten.linear.default, wide(x[1]), weight(50, 40), None),
            graph.call(aten.linear.default, wide(x[6]), weight(96, 64), None),
            graph.call(aten.bmm.default, wide(x[2]), wide(x[3])),
            graph.call(aten.relu.default, conv(x[4], weight(9, 6, 3, 3))),
            conv(x[5], weight(9, 3, 3, 3), 2),
            conv(x[4], weight(40, 6, 1, 1), 1, 0),
            conv(x[4], weight(8, 3, 3, 3), 1, 1, 2),
            conv(x[7], weight(36, 1, 3, 3), 1, 1, 36),
        ]
    )
    return pipeline("fuse_operators").run(graph, PassContext()), inputs


@pytest.mark.parametrize("target", [*TARGETS, "x86-64:amx"])
def test_products_are_sums_of_exact_products(check, target):
    graph, inputs = products()
    check(graph, inputs, target=target, rtol=1e-5, atol=3e-5)


def test_weights_stay_in_sixteen_bits(compiled):
    graph, _ = products()
    plan = compiled(graph).plan
    at_load, kernels = ([step["kernel"] for step in steps] for steps in
                        (plan["steps"][: plan["init_steps"]], plan["steps"][plan["init_steps"] :]))  # fmt: skip
    assert all(kernel.startswith("packing") for kernel in at_load)
    assert len(kernels) == 9, "widening a weight or an operand has become a step of its own"
    assert not any(kernel.startswith("elementwise") for kernel in kernels)


@pytest.mark.parametrize("target", ["host", "x86-64:v3", "arm64"])
@pytest.mark.parametrize("positions", [16, 23])
def test_attention(check, target, positions):
    q, k, v = bf16(2, 4, 19, 8), bf16(2, 4, positions, 8), bf16(2, 4, positions, 12)
    keep = torch.rand(2, 1, 1, positions) < 0.7
    inputs = [q, k, v, keep]
    graph = Graph("attention", Structure.of((tuple(inputs), {})), Structure.of((0,)))
    nodes = [graph.add_input(f"x{i}", TensorType.of(tensor)) for i, tensor in enumerate(inputs)]
    graph.set_output([graph.call(aten.scaled_dot_product_attention.default, *nodes)])
    # torch and the kernel round weights and results to 8 bits, each in its own order.
    check(graph, inputs, target=target, rtol=2**-7, atol=2**-8)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38, math.inf, -math.inf, 1e-30])
def test_the_bits_of_a_number(value):
    assert brain_float.bits(value) == int(torch.tensor(value).to(torch.bfloat16).view(torch.uint16))
