"""The zoo's decoding step."""

from __future__ import annotations

import torch

from graphc.tools.zoo import gpt


def test_steps_agree_with_one_causal_run(monkeypatch):
    for name, value in {"WIDTH": 32, "HEADS": 4, "LAYERS": 2, "VOCABULARY": 50, "POSITIONS": 16}.items():
        monkeypatch.setattr(gpt, name, value)
    model = gpt.random_step()
    tokens = torch.randint(50, (6,), generator=torch.Generator().manual_seed(1))
    keys, values = gpt.past(model, tokens)
    assert keys.shape == values.shape == (2, 1, 4, 6, 8)
    with torch.no_grad():
        logits, key, value = model(tokens[5:].view(1, 1), torch.tensor([5]), keys[..., :5, :], values[..., :5, :])
    assert logits.shape == (1, 1, 50)
    torch.testing.assert_close(key, keys[..., 5:, :])
    torch.testing.assert_close(value, values[..., 5:, :])


def test_weights_are_of_their_seed(monkeypatch):
    for name, value in {"WIDTH": 8, "HEADS": 2, "LAYERS": 1, "VOCABULARY": 5, "POSITIONS": 4}.items():
        monkeypatch.setattr(gpt, name, value)
    first, same, other = (gpt.random_step(seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    assert first["layers.0.qkv.bias"].eq(0).all() and first["norm.weight"].eq(1).all()
