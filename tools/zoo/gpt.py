"""One decoding step of a GPT-2-like language model (Radford et al., 2019) with a key-value cache."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, HEADS, LAYERS, VOCABULARY, POSITIONS = 1024, 16, 12, 8192, 1024


class Layer(nn.Module):
    """Attention and a feed-forward network, each behind layer normalization and with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.projection = nn.Linear(WIDTH, WIDTH)
        self.feed_forward_norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [1, T, width] -> query, key and value, each [1, heads, T, width / heads]."""
        parts = self.qkv(self.attention_norm(x)).chunk(3, -1)
        return tuple(part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention's sums [1, heads, T, width / heads]."""
        x = x + self.projection(attended.transpose(1, 2).flatten(2))
        fed: Tensor = self.down(F.gelu(self.up(self.feed_forward_norm(x)), approximate="tanh"))
        return x + fed

    def forward(self, x: Tensor, past_key: Tensor, past_value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [1, 1, width], the past [1, heads, T, width / heads] -> x, this token's key and value."""
        query, key, value = self.heads(x)
        # The new token is scored apart from the past, so that the cache is read where it lies and never copied.
        scores = torch.cat([query @ past_key.transpose(-1, -2), query @ key.transpose(-1, -2)], dim=-1)
        share = (scores / math.sqrt(WIDTH // HEADS)).softmax(-1)
        return self.finish(x, share[..., :-1] @ past_value + share[..., -1:] * value), key, value


class DecodingStep(nn.Module):
    """Token [1, 1] and position [1] int64, past keys and values [layers, 1, heads, T, width / heads] ->
    logits [1, 1, vocabulary], this token's keys and values [layers, 1, heads, 1, width / heads].

    168,982,528 parameters, of which a step reads 159 million as weights of linear layers: 638 MB in fp32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(POSITIONS, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(
        self, token: Tensor, position: Tensor, past_keys: Tensor, past_values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = self.tokens(token) + self.positions(position)
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            x, key, value = layer(x, past_keys[index], past_values[index])
            keys.append(key)
            values.append(value)
        return self.head(self.norm(x)), torch.stack(keys), torch.stack(values)


def random_step(seed: int = 0) -> DecodingStep:
    """The network with GPT-2's initialization: normal weights of deviation 0.02, nought for biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        model = DecodingStep()
    model = model.to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.02, generator=generator)
            else:
                parameter.fill_(1.0 if "norm.weight" in name else 0.0)
    return model.eval()


@torch.no_grad()
def past(model: DecodingStep, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The keys and values of tokens [T], each [layers, 1, heads, T, width / heads], found in one causal run."""
    x = (model.tokens(tokens) + model.positions(torch.arange(len(tokens))))[None]
    keys, values = [], []
    for layer in model.layers:
        assert isinstance(layer, Layer)
        query, key, value = layer.heads(x)
        x = layer.finish(x, F.scaled_dot_product_attention(query, key, value, is_causal=True))
        keys.append(key)
        values.append(value)
    return torch.stack(keys), torch.stack(values)
