"""What decodes a weight is linear in the floats that are stored, and gradients pass to them by the transpose."""

from __future__ import annotations

import pytest
import torch

from graphc.operators.weights import pack

ops = torch.ops.graphc
CODES = torch.tensor([[3, 0, 1, 2], [1, 1, 0, 3]], dtype=torch.uint8)
Q = torch.tensor([[-3, 0, 1, 2, 7, -8], [1, 1, 0, 3, -1, 5]], dtype=torch.int8)
ZERO = torch.tensor([[1, 0, -2], [3, 1, 0]], dtype=torch.int8)
PLACES = torch.tensor([[0, 3, 2, 1], [1, 2, 0, 1]], dtype=torch.uint8)
MASK = torch.tensor([[0, 1, 0], [1, 0, 1]], dtype=torch.uint8)
GAPS = torch.tensor([0, 1, 0, 3], dtype=torch.uint8)
DECODERS = {
    "lookup": (lambda codebook: ops.lookup(CODES, codebook), (4, 3)),
    "lookup, two spaces": (lambda codebook: ops.lookup(CODES, codebook), (2, 4, 3)),
    "lookup of packed codes": (lambda codebook: ops.lookup(ops.unpack(pack(CODES, 2), 2, 4), codebook), (4, 3)),
    "scales of groups": (lambda scale: ops.dequantize_groups(Q, scale, None, 2), (2, 3)),
    "scales of rows": (lambda scale: ops.dequantize_groups(Q, scale, ZERO, 2), (2, 1)),
    "scale of all": (lambda scale: ops.dequantize_groups(Q, scale, ZERO, 2), ()),
    "expand_2_4": (lambda values: ops.expand_2_4(values, PLACES), (2, 4)),
    "expand_blocks": (lambda values: ops.expand_blocks(values, MASK), (3, 2, 4)),
    "expand_gaps": (lambda values: ops.expand_gaps(values, GAPS, 2, 4), (4,)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", DECODERS)
def test_gradients_are_of_the_decoding(name, dtype):
    decode, shape = DECODERS[name]
    stored = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    units = torch.eye(stored.numel(), dtype=dtype)
    images = torch.stack([decode(unit.reshape(shape)) for unit in units], -1)  # the matrix, column by column
    stored.requires_grad_()
    decoded = decode(stored)
    cotangents = torch.eye(decoded.numel()).reshape(-1, *decoded.shape)
    rows = [torch.autograd.grad(decoded, stored, each, retain_graph=True)[0] for each in cotangents]
    assert all(row.dtype == dtype for row in rows)
    assert torch.equal(torch.stack(rows).reshape(decoded.numel(), -1).float(), images.reshape(decoded.numel(), -1))
