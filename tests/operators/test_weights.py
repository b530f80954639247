"""unpack, dequantize_groups and quantize_dynamic against plain Python."""

from __future__ import annotations

import pytest
import torch

from graphc.operators.weights import pack

ops = torch.ops.graphc


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 32])
def test_unpack_is_the_inverse_of_pack(bits, count):
    codes = torch.randint(0, 2**bits, (3, count), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, -(-count * bits // 8))
    stream = int.from_bytes(bytes(packed[1].tolist()), "little")
    assert [stream >> bits * i & (2**bits - 1) for i in range(count)] == codes[1].tolist()
    assert ops.unpack(packed, bits, count).equal(codes)


@pytest.mark.parametrize("zero", [None, torch.tensor(3, dtype=torch.uint8), torch.tensor([[1], [-2]]).to(torch.int8)])
def test_dequantize_groups(zero):
    q = torch.randint(0, 256, (2, 6), dtype=torch.uint8)
    scale = torch.tensor([[0.5, -2.0], [0.25, 3.0]], dtype=torch.float16)
    found = ops.dequantize_groups(q, scale, zero, 3)
    zeros = torch.zeros(2, 1) if zero is None else zero.float().reshape(-1, 1).expand(2, 1)
    for i in range(2):
        for j in range(6):
            assert found[i, j] == (q[i, j].item() - zeros[i, 0]) * scale[i, j // 3]


def test_quantize_dynamic():
    x = torch.tensor([[127.0, -63.5, 0.5, 1.5, 0.0, 0.0, 0.0, 0.0]])
    q, scale = ops.quantize_dynamic(x, 4)
    assert q.tolist() == [[127, -64, 0, 2, 0, 0, 0, 0]]  # halves to even
    assert scale.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    "call",
    [
        lambda x: ops.unpack(x.to(torch.uint8), 3, 5),
        lambda x: ops.dequantize_groups(x, torch.ones(2, 3), None, 4),
        lambda x: ops.dequantize_groups(x, torch.ones(2, 3), None, 2),
        lambda x: ops.quantize_dynamic(x.float(), 3),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call):
    with pytest.raises(Exception, match=r"not|divide|must match"):
        call(torch.zeros(2, 8, dtype=torch.int8, device="meta"))
