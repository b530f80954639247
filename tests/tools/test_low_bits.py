"""The script of accuracy in few bits, on a few images."""

import json

from graphc.tools import low_bits

FEW = ["resnet20_jpeg", "--limit", "100", "--calibration", "100"]


def test_rows_are_added_once_and_training_is_checkpointed(data, tmp_path, monkeypatch):
    output = tmp_path / "rows.json"
    training = ["--methods", "nearest", "qat", "--bits", "W4A4", "--training", "100"]
    arguments = [*FEW, *training, "--output", str(output), "--steps"]
    assert low_bits.main([*arguments, "1"]) == 0
    rows = json.loads(output.read_text())["resnet20_jpeg, limit 100, calibration 100"]
    trained = "qat W4A4, 1 steps, seed 0, training 100"
    assert list(rows) == ["nearest W4A4", trained]
    # Without any learning, four bits of both change some predictions.
    assert rows["nearest W4A4"]["float top-1 %"] > 80 and 30 < rows["nearest W4A4"]["agreement %"] < 100
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["resnet20_jpeg-qat-w4a4-1-0.safetensors"]
    measured = []
    monkeypatch.setattr(low_bits.Study, "row", lambda study, *what: measured.append(what) or {})
    assert low_bits.main([*arguments, "1"]) == 0
    assert not measured, "all of it is known"
    assert low_bits.main([*arguments, "2"]) == 0
    assert measured == [("qat", (4, 4))], "a longer training is another row"
