"""The demonstration, on a few digits and one epoch."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

import graphc
from graphc.target import machine_arch
from graphc.tools import demo


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if machine_arch() != "arm64" and shutil.which("qemu-aarch64") is None:
        pytest.skip("needs qemu-aarch64 (Debian, Ubuntu: apt install qemu-user)")
    digits = demo.load()
    few = demo.Digits(
        digits.images[:320], digits.labels[:320], digits.held_out_images[:20], digits.held_out_labels[:20]
    )
    monkeypatch.setattr(demo, "load", lambda: few)
    monkeypatch.setattr(demo, "EPOCHS", 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # the other tests keep theirs
    monkeypatch.setattr(sys, "argv", ["demo", "--output", str(tmp_path)])
    assert demo.main() == 0
    printed = capsys.readouterr().out
    for target, precision in demo.VARIANTS:
        assert f"{target} {precision}" in printed
        folder = tmp_path / f"{target}-{precision}"
        assert len(list((folder / "ir").glob("*.txt"))) > 5 and (folder / "report.html").exists()
        artifact = graphc.load(folder / "digits.graphc")
        assert artifact.run(few.held_out_images[:1]).shape == (1, 10)
        weights = {row.format for row in artifact.report().rows if row.macs}
        assert weights == ({"int8"} if precision == "int8" else {"f32"})


def test_training_is_repeatable(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.progress import Progress

    monkeypatch.setattr(demo, "EPOCHS", 1)
    digits = demo.load()
    one, two = (demo.train(digits, Progress(disable=True)).state_dict() for _ in range(2))
    assert all(tensor.equal(two[name]) for name, tensor in one.items())
