"""The script that compares mixed with uniform formats, on few of all; what it says of all stands in the README."""

from __future__ import annotations

import json

import pytest

from graphc.analysis import gradients
from graphc.tools import assignment


def test_against_is_paired():
    assert assignment.against(["1100"], ["1010"]) == "+0.00 +- 40.82"
    assert assignment.against(["1111"], ["1111"]) == "+0.00 +- 0.00"
    assert assignment.against(["1011"], ["0000"]).startswith("+75.00")
    assert assignment.against(["1011", "0011"], ["0000", "0000"]).startswith("+62.50")


def test_a_second_seed_does_not_make_images_more():
    once, twice = (assignment.against(["1101"] * count, ["0110"] * count) for count in (1, 2))
    assert once == twice


@pytest.fixture
def few(data, monkeypatch):
    """One budget, and of everything a little."""
    formats = ("linear(bits=2,range=mse,rounding=gptq)", "vector(d=4,codewords=256)", "vector(d=9,codewords=64)")
    vectors, linears = assignment._vectors(), assignment._linears()
    monkeypatch.setattr(assignment, "FORMATS", formats)
    monkeypatch.setattr(assignment, "RATIOS", (16,))
    monkeypatch.setattr(assignment, "_CALIBRATION", 20)
    monkeypatch.setattr(
        gradients, "scores", lambda graph, found, ctx, scores=gradients.scores: scores(graph, found, ctx, 4)
    )
    monkeypatch.setattr(assignment, "_vectors", lambda: [each for each in vectors if each[0] == "4"][-3:])
    monkeypatch.setattr(assignment, "_linears", lambda: linears[-2:])


def test_rows_keep_the_bytes_and_a_stopped_run_goes_on(few, tmp_path, monkeypatch):
    output = tmp_path / "figures.json"
    arguments = ["resnet20", "--limit", "40", "--gates", "2", "--steps", "0", "--output", str(output)]
    assert assignment.main([*arguments, "--plot", str(tmp_path / "figure.png")]) == 0
    written = json.loads(output.read_text())["resnet20, limit 40, gates 2, steps 0"]
    rows = {name: row for name, row in written.items() if isinstance(row, dict) and "bytes" in row}
    assert set(rows) == {f"16x {way}" for way in (
        "mixed, integer program", "mixed, gates", "vector, integer program", "uniform vector", "uniform linear",
        "uniform linear, next larger",
    )}  # fmt: skip
    assert written["16x linear, integer program"] == {"measured": "nothing fits"}
    assert all((row["bytes"] > written["fp32 bytes"] // 16) == ("larger" in name) for name, row in rows.items())
    assert written["16x uniform vector | passes"].count("vector(d=4") == 1, "one format for all"
    assert written["fp32 top-1 %"] > rows["16x mixed, integer program"]["top-1 %"] > 15
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(assignment, "candidates", None)  # nothing is chosen, and nothing compressed, again
    monkeypatch.setattr(assignment.Study, "compressed", None)
    assert assignment.main(arguments) == 0
    assert json.loads(output.read_text())["resnet20, limit 40, gates 2, steps 0"] == written


def test_reach_recovers_in_the_same_bytes(few, tmp_path):
    output = tmp_path / "figures.json"
    arguments = ["reach", "--limit", "20", "--reach", "1", "--output", str(output), "--seeds"]
    assert assignment.main([*arguments, "0"]) == 0
    one = json.loads(output.read_text())["reach, limit 20, reach 1"]
    assert assignment.main([*arguments, "0", "1"]) == 0
    two = json.loads(output.read_text())["reach, limit 20, reach 1"]
    row = two["16x"]
    assert row["recovered bytes"] == row["bytes"]
    assert "+-" in row["recovered top-1 %, against"]
    assert two["16x | recovered, seed 0"] == one["16x | recovered, seed 0"] != two["16x | recovered, seed 1"]
    shares = [float(share) for share in row["recovered top-1 %, each seed"].split(", ")]
    assert len(shares) == 2 and row["recovered top-1 %"] == sum(shares) / 2
    assert [file.name for file in tmp_path.iterdir()] == ["figures.json"], "the checkpoint has served its turn"
