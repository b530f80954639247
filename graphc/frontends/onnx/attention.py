"""ONNX Attention and RotaryEmbedding (operator set 23); each over torch tensors."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graphc.frontends.onnx.operator import UnsupportedAttribute, operator


def _heads(x: Tensor, count: int | None) -> Tensor:
    """[batch, length, heads * size] as [batch, heads, length, size]; four dimensions stay as they are."""
    if x.dim() == 4:
        return x
    if count is None:
        raise UnsupportedAttribute("inputs of three dimensions need the attributes 'q_num_heads' and 'kv_num_heads'")
    return x.reshape(*x.shape[:2], count, x.shape[2] // count).transpose(1, 2)


@operator("Attention")
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    /,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int = 1,
    results: int,
) -> Tensor:
    if results > 1:
        raise UnsupportedAttribute("results after the first are not supported")
    if softcap:
        raise UnsupportedAttribute(f"attribute 'softcap' is {softcap}; legal: 0")
    flat = q.dim() == 3
    q, k, v = _heads(q, q_num_heads), _heads(k, kv_num_heads), _heads(v, kv_num_heads)
    if is_causal and mask is not None:
        allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
        mask = mask & allowed if mask.dtype is torch.bool else mask.masked_fill(~allowed, -torch.inf)
    y = F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=bool(is_causal) and mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return y.transpose(1, 2).flatten(2) if flat else y


@operator("RotaryEmbedding")
def rotary_embedding(
    x: Tensor,
    cosine: Tensor,
    sine: Tensor,
    positions: Tensor | None = None,
    /,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Rotate pairs of elements by angles; cosine and sine are [batch, length, pairs], or tables [positions, pairs]."""
    flat = x.dim() == 3
    heads = _heads(x, num_heads)
    size = rotary_embedding_dim or heads.shape[-1]
    turned, kept = heads[..., :size], heads[..., size:]
    if positions is not None:
        cosine, sine = cosine[positions], sine[positions]
    cosine, sine = cosine.unsqueeze(1), sine.unsqueeze(1)
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
    else:
        a, b = turned.chunk(2, -1)
    pair = (a * cosine - b * sine, a * sine + b * cosine)
    turned = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    y = torch.cat([turned, kept], -1)
    return y.transpose(1, 2).flatten(2) if flat else y
