"""The table beside other libraries, on few images."""

import json

import pytest
import torch

from graphc.tools import peers

WEIGHTS, CHANNELS = 268_336, 698


@pytest.fixture
def few(data, monkeypatch):
    monkeypatch.setattr(peers, "CALIBRATION", 100)
    return ["resnet20_jpeg", "--limit", "100", "--iterations", "1"]


def run(arguments, rows, output, monkeypatch):
    monkeypatch.setattr(peers, "ROWS", rows)
    assert peers.main([*arguments, "--output", str(output)]) == 0
    return json.loads(output.read_text())["resnet20_jpeg, limit 100, iterations 1"]


def test_a_peer_stands_beside_on_the_same_images(few, tmp_path, monkeypatch):
    def peer(study):  # in the libraries' place, which take half a minute to import
        assert len(study.images) == 1 and study.images[0].shape == (100, 3, 32, 32)
        return study.entry.build(), lambda: 1

    name = "W8A8 graphc quantize"
    rows = {name: peers.ROWS[name], "W8A8 a peer": ("torch", peer), "W8A8 absent": ("no-such-package", peer)}
    written = run(few, rows, tmp_path / "peers.json", monkeypatch)
    ours, theirs = written[name], written["W8A8 a peer"]
    assert "W8A8 absent" not in written and theirs["version"] == torch.__version__
    assert theirs["top-1 %"] == written["float top-1 %"] and theirs["to float"] == "+0.00 +- 0.00"
    assert ours["top-1 %"] > 80 and theirs["graphc to it"] == ours["to float"]
    assert abs(ours["bytes"] / (WEIGHTS + 8 * CHANNELS) - 1) < 0.003


@pytest.mark.parametrize(
    ("package", "name", "stored"),
    [
        ("nncf", "W4A8 NNCF quantize, fast", WEIGHTS // 2 + 8 * CHANNELS),
        ("torchao", "W4A8 torchao PT2E", WEIGHTS // 2 + 8 * CHANNELS),
        ("neural-compressor", "W8A8 Neural Compressor static", WEIGHTS + 8 * CHANNELS),
        ("torchao", "W4 torchao Intx", WEIGHTS // 2 + WEIGHTS // 16 * 2 + 4 * CHANNELS),
    ],
)
def test_a_peer_stores_what_it_is_asked_for(few, package, name, stored, tmp_path, monkeypatch):
    if peers.installed(package) is None:
        pytest.skip(f"{package} is of the bench extra: pip install {package}")
    row = run(few, {name: peers.ROWS[name]}, tmp_path / "peers.json", monkeypatch)[name]
    assert row["top-1 %"] > 70 and abs(row["bytes"] / stored - 1) < 0.02
