"""The figures' program, on a few images: what it says of all of them stands in the README."""

from __future__ import annotations

import json

import pytest

import graphc
from graphc.runtime import emulator
from graphc.tools import figures
from graphc.tools.bench import measurement


@pytest.fixture
def emulated(data):
    try:
        emulator.find("arm64")
    except figures.graphc.errors.TargetError as missing:
        pytest.skip(str(missing))


def test_resnet20(emulated):
    found = figures.resnet20(24)
    assert found["images"] == found["fp32: images predicted as torch does"] == 24
    assert found["int8: images predicted as torch does"] >= 22
    assert found["int8 bytes of weights / fp32 bytes of weights"] <= 0.27
    assert found["int8 bytes of weights / fp32 parameters"] <= 0.27
    assert found["arm64 fp32: same top-1 as the host"] == found["arm64 fp32: images"] == 24
    assert found["arm64 int8: logits bit-equal to the host's"] == found["arm64 int8: images"] == 24


def test_output_is_json(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(figures.FIGURES, "time", lambda limit: {"seconds": 0.125, "limit": limit})
    assert figures.main(["time", "--limit", "3", "--output", str(tmp_path / "figures.json")]) == 0
    assert json.loads((tmp_path / "figures.json").read_text()) == {"time, limit 3": {"seconds": 0.125, "limit": 3}}
    assert "0.125" in capsys.readouterr().out


def test_an_unknown_figure_is_an_error(capsys):
    with pytest.raises(SystemExit):
        figures.main(["tme"])
    assert "known: resnet20, models" in capsys.readouterr().err


def test_speed_is_the_benchs(monkeypatch):
    def measure(group, kind, engines, folder, rounds, log, say, score):
        assert (kind, [engine.name for engine in engines], rounds) == ("static", ["graphc", "ONNX Runtime"], 2)
        seconds = {"graphc": 0.003, "ONNX Runtime": 0.004}
        status = {"status": "wrong", "reason": "outputs differ"} if group.name == wrong else {"status": "ok"}
        return [
            {"engine": engine, "precision": precision, "seconds": seconds[engine], **status}
            for engine in seconds
            for precision in ("fp32", "int8")
        ]

    monkeypatch.setattr(measurement, "measure", measure)
    wrong = ""
    found = figures.speed(2)
    assert found["mobilenet_v2 int8: graphc / ONNX Runtime"] == 0.75
    assert found["resnet18 fp32: ONNX Runtime, ms"] == 4
    wrong = "mobilenet_v2"
    with pytest.raises(graphc.GraphcError, match=r"mobilenet_v2 by graphc: outputs differ"):
        figures.speed(2)
