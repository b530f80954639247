"""Counting executed instructions of emulated arm64 code."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import graphc
from graphc.artifact import Artifact
from graphc.errors import TargetError
from graphc.target import machine_arch
from graphc.tools.instructions import __main__ as command
from graphc.tools.instructions import count_steps

X = torch.randn(1, 16, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def emulator() -> None:
    if shutil.which("qemu-aarch64") is None or machine_arch() == "arm64":
        pytest.skip("needs qemu-aarch64 on another architecture (Debian, Ubuntu: apt install qemu-user)")


@pytest.fixture(scope="module")
def compiled() -> dict[str, Artifact]:
    """An int8 convolution of 12 x 12 x 32 results with 144 products each, by target."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()).eval()
    return {cpu: graphc.compile(model, f"arm64:{cpu}", (X,), [X]) for cpu in ("cortex-a72", "cortex-a76")}


def test_counts_are_exact_and_show_the_instruction_set(compiled: dict[str, Artifact]) -> None:
    totals = {}
    for cpu, artifact in compiled.items():
        first, second = count_steps(artifact, X, runs=2)
        assert first == second and len(first) == len(artifact.plan["steps"]) - artifact.plan["init_steps"]
        assert all(sum(step.classes.values()) == step.instructions for step in first)
        totals[cpu] = sum(step.instructions for step in first)
        products = 12 * 12 * 32 * 144
        multiply_adds = sum(step.classes["multiply_accumulate"] for step in first)
        # 16 products in an instruction, or at most 8; more than needed where a tile is not full.
        assert multiply_adds >= products / (16 if cpu == "cortex-a76" else 8)
    assert totals["cortex-a76"] < 0.75 * totals["cortex-a72"]
    assert "QEMU_PLUGIN" not in os.environ


def test_command(compiled: dict[str, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiled["cortex-a76"].save(tmp_path / "model.graphc")
    assert command.main([str(tmp_path / "model.graphc"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["repeatable"] and found["instructions"] == sum(step["instructions"] for step in found["steps"])
    assert command.main([str(tmp_path / "model.graphc")]) == 0
    assert f"{found['instructions']} instructions" in capsys.readouterr().out
    assert command.main([str(tmp_path / "none.graphc")]) == 1


def test_other_architectures_are_refused() -> None:
    artifact = graphc.compile(nn.ReLU(), "x86-64", (X,))
    with pytest.raises(TargetError, match="arm64 code, and this is for x86-64"):
        count_steps(artifact, X)
