"""The script that shows what training brings back, on a few images."""

import json

import pytest
import torch

from graphc.tools import recovery

FEW = ["resnet20", "--seeds", "0", "--batch", "8", "--images", "100", "--limit", "8"]


def test_resnet20_takes_about_one_bit_a_weight(data, tmp_path, monkeypatch):
    output = tmp_path / "figures.json"
    arguments = [*FEW, "--steps", "2", "2", "--learning-rate", "1e-3", "1e-4", "--folder", str(tmp_path)]
    arguments += ["--output", str(output)]
    assert recovery.main(arguments) == 0
    key = "2+2 steps, seed 0, batch 8, learning rate 0.001+0.0001, images 100"
    figures = json.loads(output.read_text())["resnet20, limit 8"][key]
    # 29,696 codes, 256 x 9 codewords in f16, and a scale in f32 for each of 672 rows.
    assert figures["bits a weight of the coded layers"] == round(8 * (29_696 + 4_608 + 4 * 672) / 267_264, 3)
    # Batch normalizations are in the scales and 688 biases; the first and the last layer are in f32.
    assert figures["bytes"] == 29_696 + 4_608 + 4 * 672 + 4 * (688 + 27 * 16 + 650)
    phases = {f"resnet20-euclidean-{steps}x8-0.safetensors" for steps in ("2", "2+2")}
    assert {path.name for path in tmp_path.glob("*.safetensors")} == phases
    monkeypatch.setattr(recovery, "recovered", None)
    assert recovery.main(arguments) == 0, "it is known"
    with pytest.raises(TypeError):
        recovery.main([*arguments, "--latent-rate", "1", "0.5"])


def test_latent_weights_learn_at_their_own_rate(data, tmp_path, monkeypatch):
    """In the phase that says so: a first step of Adam is as long as the learning rate, whatever the gradient."""
    moved = []

    def watched(student, *rest, distill=recovery.distill):
        before = {name: value.detach().clone() for name, value in student.named_parameters()}
        distill(student, *rest)
        after = dict(student.named_parameters())
        longest = {name: float((after[name].detach() - value).abs().max()) for name, value in before.items()}
        latent = [step for name, step in longest.items() if name.endswith(".original")]
        others = [step for name, step in longest.items() if not name.endswith(".original")]
        moved.append((max(latent), max(others)))

    monkeypatch.setattr(recovery, "distill", watched)
    rates = ["--learning-rate", "1e-3", "1e-3", "--latent-rate", "1", "0.125"]
    assert recovery.main([*FEW, "--steps", "1", "1", *rates, "--folder", str(tmp_path)]) == 0
    assert torch.tensor(moved) == pytest.approx(torch.tensor([[1e-3, 1e-3], [1.25e-4, 1e-3]]), rel=0.02)


def test_a_mean_is_of_all_seeds(tmp_path):
    known = recovery.Known(None, "vectors")
    for seeds in ([0, 2], [5]):
        recovery.seeds(lambda seed: {"figure": seed}, recovery.argparse.Namespace(seeds=seeds), known)
    assert known["mean"] == {"figure": pytest.approx(7 / 3)}


def test_unknown_figures_are_refused(capsys):
    with pytest.raises(SystemExit):
        recovery.main(["nothing"])
    assert "resnet20" in capsys.readouterr().err
