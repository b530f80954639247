"""Llama-type language model (Touvron et al., 2023) with the tied head of llama2.c, in real arithmetic."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rotary_tables(context: int, head_dim: int, base: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines [context, head_dim / 2] of rotary position embedding (Su et al., RoFormer, 2021)."""
    frequencies = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each adjacent pair (2i, 2i+1) of x [N, heads, T, head_dim] by its position's angle."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class Layer(nn.Module):
    """Grouped-query attention and a SwiGLU feed-forward network, each behind RMSNorm and with a residual."""

    def __init__(self, dim: int, hidden: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.attn_norm = nn.RMSNorm(dim, eps=1e-5)
        self.wq = nn.Linear(dim, dim, bias=False)
        self.wk = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.ffn_norm = nn.RMSNorm(dim, eps=1e-5)
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        """[N, T, heads * head_dim] -> [N, heads, T, head_dim]"""
        return torch.unflatten(x, -1, (-1, self.head_dim)).transpose(1, 2)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y = self.attn_norm(x)
        query, key = rotate(self.heads(self.wq(y)), cos, sin), rotate(self.heads(self.wk(y)), cos, sin)
        value = self.heads(self.wv(y))
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        x = x + self.wo(y.transpose(1, 2).flatten(2))
        y = self.ffn_norm(x)
        feed_forward: Tensor = self.w2(F.silu(self.w1(y)) * self.w3(y))
        return x + feed_forward


class Llama(nn.Module):
    """[N, T] int64 tokens, T <= context -> [N, T, vocabulary] logits of the next token."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self, vocabulary: int, dim: int, hidden: int, context: int, layers: int = 5, heads: int = 8, kv_heads: int = 4
    ) -> None:
        super().__init__()
        self.tok = nn.Embedding(vocabulary, dim)
        self.layers = nn.ModuleList(Layer(dim, hidden, heads, kv_heads) for _ in range(layers))
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        cos, sin = rotary_tables(context, dim // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.tok(tokens)
        for layer in self.layers:
            x = layer(x, self.cos[:length], self.sin[:length])
        return F.linear(self.norm(x), self.tok.weight)


def stories260k() -> Llama:
    """260,032 parameters, context 512, sub-word tokens."""
    return Llama(vocabulary=512, dim=64, hidden=172, context=512)


def llama_char105() -> Llama:
    """936,448 parameters, context 256, one token per character."""
    return Llama(vocabulary=105, dim=128, hidden=352, context=256)
