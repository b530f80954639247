"""Processes that are really killed: SIGKILL in the middle of training, and the next one gives the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

import graphc
from graphc.formats.vector import Vector
from graphc.training.distillation import Distillation, distill
from graphc.training.loop import Samples, Training
from graphc.training.stored_weight import expressed
from graphc.training.vectors import VectorTraining, vector_trainable

STEPS = 200


def noisy(batch: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    return [batch[0] + 0.1 * torch.randn(batch[0].shape, generator=generator)]


def run(folder: Path) -> dict[str, Tensor]:
    """Codebooks and statistics of batch normalization, trained in bf16 towards a wider network's features; a line a
    step. Killed and run again in the same folder, it goes on."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    graphs = []
    for width in (12, 8):
        layers = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Flatten(), nn.Linear(width * 16, 5)
        graphs.append(graphc.trace(nn.Sequential(*layers).eval(), (torch.randn(4, 3, 6, 6),)))
    teacher, student = graphs[0], vector_trainable(graphs[1], VectorTraining(Vector(d=9, codewords=16)))
    node = next(node.name for node in teacher.calls if "relu" in node.name)
    aims = Distillation(features=0.5, nodes=(node,), precision="bf16")
    training = Training(STEPS, 1e-2, warmup=3, seed=4, checkpoint=folder / "run.safetensors", interval=2)
    samples = Samples((torch.randn(22, 3, 6, 6),), 4, 7, noisy)
    distill(student, teacher, samples, aims, training, progress=lambda what, done, total: print(done, flush=True))
    return expressed(student).weights


def killed(folder: Path, after: int) -> None:
    """Run in a process of its own, and kill it once it has done `after` steps."""
    command = [sys.executable, __file__, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(Path(graphc.__file__).parents[1])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        assert after in (int(line) for line in process.stdout)
        process.kill()  # SIGKILL: nothing is caught, flushed or closed
    assert process.returncode == -signal.SIGKILL


def test_a_killed_process_gives_the_same_bits(tmp_path, capsys):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    expected = run(tmp_path / "whole")
    killed(tmp_path / "killed", 5)
    capsys.readouterr()
    found = run(tmp_path / "killed")
    assert 4 < int(capsys.readouterr().out.split()[0]) < STEPS, "the second run began anew, or the first was not killed"
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


if __name__ == "__main__":
    run(Path(sys.argv[1]))
