"""The script that shows what training brings back, on a few images."""

import json

import pytest

from graphc.tools import recovery


def test_resnet20_takes_about_one_bit_a_weight(data, tmp_path):
    arguments = ["resnet20", "--seeds", "0", "--steps", "2", "--batch", "2", "--limit", "8", "--folder", str(tmp_path)]
    assert recovery.main(arguments) == 0
    written = json.loads((tmp_path / "figures.json").read_text())
    (figures,) = written["resnet20"]
    assert written["seeds"] == [0]
    # 29,696 codes, 256 x 9 codewords in f16, and a scale in f32 for each of 672 rows.
    assert figures["bits a weight of the coded layers"] == round(8 * (29_696 + 4_608 + 4 * 672) / 267_264, 3)
    assert figures["bytes"] < 45_000
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["resnet20-euclidean-2x2-0.safetensors"]


def test_unknown_figures_are_refused(capsys):
    with pytest.raises(SystemExit):
        recovery.main(["nothing"])
    assert "resnet20" in capsys.readouterr().err
