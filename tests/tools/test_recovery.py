"""The script that shows what training brings back, on a few images."""

import json

import pytest

from graphc.tools import recovery


def test_resnet20_takes_about_one_bit_a_weight(data, tmp_path):
    arguments = ["resnet20", "--seeds", "0", "--steps", "2", "2", "--learning-rate", "1e-3", "1e-4", "--batch", "8"]
    arguments += ["--images", "100", "--limit", "8", "--folder", str(tmp_path)]
    assert recovery.main(arguments) == 0
    written = json.loads((tmp_path / "figures.json").read_text())
    figures = written["resnet20"]["0"]
    # 29,696 codes, 256 x 9 codewords in f16, and a scale in f32 for each of 672 rows.
    assert figures["bits a weight of the coded layers"] == round(8 * (29_696 + 4_608 + 4 * 672) / 267_264, 3)
    # Batch normalizations are in the scales and 688 biases; the first and the last layer are in f32.
    assert figures["bytes"] == 29_696 + 4_608 + 4 * 672 + 4 * (688 + 27 * 16 + 650)
    phases = {f"resnet20-euclidean-{steps}x8-0.safetensors" for steps in ("2", "2+2")}
    assert {path.name for path in tmp_path.glob("*.safetensors")} == phases


def test_unknown_figures_are_refused(capsys):
    with pytest.raises(SystemExit):
        recovery.main(["nothing"])
    assert "resnet20" in capsys.readouterr().err
