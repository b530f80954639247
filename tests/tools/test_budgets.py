"""The script that holds graphc to `metric_drop`: its metrics, and a sweep over a small network."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from graphc.tools import budgets
from graphc.tools.statement import Known


def test_likelihood_counts_each_target_once():
    logits = torch.zeros(1, 3, 4)
    windows, targets = torch.zeros(2, 3, dtype=torch.int64), torch.tensor([[0, 1, -100], [2, 3, 0]])
    assert budgets.likelihood(windows, targets)(lambda x: logits.numpy()) == pytest.approx(-math.log(4))


def test_similarity_is_the_rank_correlation(monkeypatch):
    pairs, gold = [("a", "b"), ("a", "c"), ("b", "c")], torch.tensor([3.0, 2.0, 1.0])
    angles = {"a": 0.0, "b": 0.1, "c": 2.0}
    monkeypatch.setattr(
        budgets.tokens,
        "wordpiece",
        lambda sentences, length: (torch.tensor([[ord(each)] for each in sentences]), torch.ones(len(sentences), 1)),
    )

    def run(inputs):
        ids, _ = inputs
        return torch.tensor([[math.cos(angles[chr(i)]), math.sin(angles[chr(i)])] for i in ids.flatten()]).numpy()

    assert budgets.similarity(pairs, gold, 1, 2)(run) == pytest.approx(0.5)  # cosines 0.995, -0.42, -0.32


def test_a_sweep_states_what_was_promised_and_what_was_kept(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    monkeypatch.setitem(budgets.MODELS, "small", SimpleNamespace(build=lambda: model))
    parts = {part: torch.randn(64, 16) for part in budgets.PARTS}

    def metric(x):
        with torch.no_grad():
            expected = model(x)
        return lambda run: -float((torch.as_tensor(run(x)) - expected).square().mean() / expected.square().mean())

    metrics = {part: metric(x) for part, x in parts.items()}
    calibration, known = [(torch.randn(64, 16),)], Known(tmp_path / "figures.json", "small")
    formats = ("linear", "linear(bits=2)", "vector(d=4,codewords=16)")
    budgets._sweep(known, "small", (0.05, 0.0), metrics, calibration, formats)
    row = json.loads((tmp_path / "figures.json").read_text())["small"]["metric_drop=0.05"]
    assert row["broken"] == "" and row["drop, searched"] <= 0.05 and row["drop, held back"] <= 0.05
    assert row["times smaller"] > 2 and row["artifacts"] > 1
    assert known["metric_drop=0.0"]["measured"].startswith("metric"), "kernels round in another order than torch"
