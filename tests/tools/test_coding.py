"""Entropy coding of a trained network's weights, beside what looks for repetitions."""

import json

import pytest

from graphc.tools import coding


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("way", ["int8", "vector, 2 bits"])
def test_trained_weights_are_coded_in_about_the_bytes_of_zlib_or_fewer(way):
    """Noughts where nothing is read repeat in LeNet, which is to zlib's advantage."""
    row = coding.measure("lenet", way)
    assert row["coded"] < row["bytes"]
    assert row["coded"] < 1.02 * row["zlib"]


def test_what_is_coded_is_not_coded_again(tmp_path, monkeypatch):
    output, made = tmp_path / "figures.json", []
    monkeypatch.setattr(coding, "measure", lambda *what: made.append(what) or {"bytes": 1})
    for _ in range(2):
        assert coding.main(["lenet", "--limit", "2", "--output", str(output)]) == 0
    assert made == [("lenet", "float"), ("lenet", "int8")]
    assert json.loads(output.read_text()) == {"lenet, limit 2": {"float": {"bytes": 1}, "int8": {"bytes": 1}}}
