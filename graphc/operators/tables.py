"""Vector-quantized weights: codewords by index, and products with them by look-up of partial sums.

The rows of a weight are codewords of d elements side by side, W[n] = codebook[i[n, 0]], codebook[i[n, 1]], ..., so

    W @ x = sum over j of codebook[i[., j]] @ x[j*d : (j+1)*d] = gather_sum(partial_products(x, codebook), i)

Every product of a codeword with a piece of x is computed once, however many rows there are (Jegou et al., "Product
Quantization for Nearest Neighbor Search", 2011, section III; here the database are the weights). A codebook is
[codewords, d], or [spaces, codewords, d]: the J pieces of a row then lie in so many runs of equal length, each with
codewords of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Table entries that one step of the reference gathers: bounds its memory.
_CHUNK = 1 << 24


@torch.library.custom_op("graphc::lookup", mutates_args=())
def lookup(indices: Tensor, codebook: Tensor) -> Tensor:
    """Codewords side by side: the decoding of the `vector` format.

    indices: uint8 [..., J]. codebook: f16 or f32, [codewords, d] or [spaces, codewords, d]. Returns f32 [..., J * d].
    """
    return codebook.to(torch.float32).flatten(0, -2)[_rows(indices, codebook)].flatten(-2)


def _rows(indices: Tensor, codebook: Tensor) -> Tensor:
    """The places of the codewords among those of all spaces, i64 [..., J]."""
    spaces, codewords, _ = _sizes(codebook)
    first = torch.arange(spaces).repeat_interleave(indices.shape[-1] // spaces) * codewords
    return indices.to(torch.int64) + first


@lookup.register_fake
def _(indices: Tensor, codebook: Tensor) -> Tensor:
    spaces, _, d = _sizes(codebook)
    if indices.shape[-1] % spaces:
        raise RuntimeError(f"{indices.shape[-1]} pieces are no whole number of runs for {spaces} codebooks")
    return indices.new_empty([*indices.shape[:-1], indices.shape[-1] * d], dtype=torch.float32)


def _keep_lookup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _lookup_gradient(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
    indices, codebook = ctx.saved_tensors
    d = codebook.shape[-1]
    # Against index_add, the gradient of an embedding is summed in one order.
    summed = torch.ops.aten.embedding_dense_backward(
        gradient.unflatten(-1, (-1, d)).contiguous(), _rows(indices, codebook), codebook.numel() // d, -1, False
    )
    return None, summed.reshape(codebook.shape).to(codebook.dtype)


lookup.register_autograd(_lookup_gradient, setup_context=_keep_lookup)


@torch.library.custom_op("graphc::partial_products", mutates_args=())
def partial_products(x: Tensor, codebook: Tensor) -> Tensor:
    """Products of every codeword with every piece of x.

    x: f32 [..., J * d]. codebook: f16 or f32, [codewords, d] or [spaces, codewords, d].
    Returns f32 [..., J, codewords].
    """
    spaces, codewords, d = _sizes(codebook)
    columns = codebook.to(torch.float32).reshape(spaces, codewords, d).transpose(-1, -2)
    products: Tensor = (x.unflatten(-1, (spaces, -1, d)) @ columns).flatten(-3, -2)
    return products


@partial_products.register_fake
def _(x: Tensor, codebook: Tensor) -> Tensor:
    spaces, codewords, d = _sizes(codebook)
    if x.shape[-1] % (spaces * d):
        raise RuntimeError(f"{x.shape[-1]} elements are no whole number of pieces of {d} for {spaces} codebooks")
    return x.new_empty([*x.shape[:-1], x.shape[-1] // d, codewords])


def _sizes(codebook: Tensor) -> tuple[int, int, int]:
    """Spaces, codewords, d."""
    return codebook.shape[0] if codebook.dim() == 3 else 1, codebook.shape[-2], codebook.shape[-1]


@torch.library.custom_op("graphc::gather_sum", mutates_args=())
def gather_sum(tables: Tensor, indices: Tensor) -> Tensor:
    """y[..., n] = sum over j of tables[..., j, indices[n, j]].

    tables: f32 [..., J, codewords]. indices: uint8 [N, J]. Returns f32 [..., N].
    """
    wide = indices.t().to(torch.int64)
    rows = tables.reshape(-1, *tables.shape[-2:])
    step = max(1, _CHUNK // wide.numel())
    sums = [part.gather(-1, wide.expand(len(part), -1, -1)).sum(-2) for part in rows.split(step)]
    return torch.cat(sums).reshape(*tables.shape[:-2], len(indices))


@gather_sum.register_fake
def _(tables: Tensor, indices: Tensor) -> Tensor:
    if tables.shape[-2] != indices.shape[1]:
        raise RuntimeError(f"{tables.shape[-2]} tables for {indices.shape[1]} indices a row")
    return tables.new_empty([*tables.shape[:-2], indices.shape[0]])
