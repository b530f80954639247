"""The script of accuracy in few bits, on a few images."""

import json

from graphc.tools import low_bits

FEW = ["--network", "resnet20_jpeg", "--images", "100", "--calibration", "100"]


def test_rows_are_added_once_and_training_is_checkpointed(data, tmp_path):
    output = tmp_path / "rows.json"
    training = ["--methods", "nearest", "qat", "--bits", "W4A4", "--training", "100", "--steps", "1"]
    assert low_bits.main([*FEW, *training, "--output", str(output)]) == 0
    written = output.read_text()
    nearest, trained = json.loads(written)
    assert (nearest["method"], trained["method"]) == ("nearest", "qat")
    # Without any learning, four bits of both change some predictions.
    assert nearest["float top-1 %"] > 80 and 30 < nearest["agreement %"] < 100
    assert trained["steps"] == 1 and nearest["steps"] == 0
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["resnet20_jpeg-qat-w4a4-1-0.safetensors"]
    assert low_bits.main([*FEW, *training, "--output", str(output)]) == 0
    assert output.read_text() == written  # nothing ran again: the seconds are the same
