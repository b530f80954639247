"""`graphc tune` and `graphc latency`: what they measure, print and keep."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from graphc import cli

MODEL = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(32, 8))
"""
Graphc = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Graphc:
    """run("verb", ...) in a folder with models.py: status, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *sys.path])
    (tmp_path / "models.py").write_text(MODEL)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(arguments)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return call


MODEL_ARGUMENTS = ("models.py:build", "--shape", "1,4,4,4", "--rounds", "1", "--threads", "1")


def test_tune_keeps_what_it_searched_and_does_not_search_twice(run: Graphc, tmp_path: Path) -> None:
    status, out, _ = run("tune", *MODEL_ARGUMENTS, "--database", "tuned.json", "--json")
    assert status == 0
    found = json.loads(out)
    if found:
        (entries,) = json.loads((tmp_path / "tuned.json").read_text()).values()
        assert entries.keys() == found.keys() and all(entry["searched"] for entry in entries.values())
        before = (tmp_path / "tuned.json").stat().st_mtime_ns
        assert run("tune", *MODEL_ARGUMENTS, "--database", "tuned.json")[0] == 0
        assert (tmp_path / "tuned.json").stat().st_mtime_ns == before


def test_latency_prints_a_column_for_each_format(run: Graphc, tmp_path: Path) -> None:
    status, out, _ = run("latency", *MODEL_ARGUMENTS, "--formats", "int8", "--cache", "latency.json")
    head, *rows = out.split("\n\n")[0].splitlines()
    assert status == 0 and head.split("  ")[0] == "LAYER" and "f32 US" in head and "int8 US" in head
    assert [row.split()[0] for row in rows] == ["0", "3"]
    status, out, _ = run("latency", *MODEL_ARGUMENTS, "--formats", "int8", "--cache", "latency.json", "--json")
    assert {(entry["layer"], entry["format"]) for entry in json.loads(out)} == {
        (layer, name) for layer in ("0", "3") for name in ("f32", "int8")
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tune", *MODEL_ARGUMENTS, "--target", "arm64:cortex-a53"), "cannot time code for arm64:cortex-a53"),
        (("tune", *MODEL_ARGUMENTS, "--key", "board"), "--tracker and --key go together"),
        (("latency", *MODEL_ARGUMENTS, "--tracker", "nowhere", "--key", "board"), "expected HOST:PORT"),
        (("latency", *MODEL_ARGUMENTS, "--formats", "int7"), "unknown format 'int7'; known formats: f32"),
    ],
)
def test_what_cannot_be_measured_is_said(run: Graphc, arguments: tuple[str, ...], message: str) -> None:
    status, _, err = run(*arguments)
    assert status == 1 and message in err
