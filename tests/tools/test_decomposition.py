"""The papers' inequalities on a piece of a real layer, judged on images that the encoders have not seen."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from graphc.progress import silent
from graphc.tools import decomposition, subspace_iteration
from graphc.tools.layer_losses import Layer, Network


@pytest.fixture(scope="module")
def piece() -> Network:
    """96 rows and 192 columns of LeNet's first linear layer."""
    network = Network("lenet", 64, 1, 1000, None, silent)
    (whole,) = network.layers
    given, judged = whole.given[:192, :192].clone(), whole.judged[:192, :192].clone()
    network.layers = [Layer(whole.name, whole.weight[:96, :192].clone(), given, judged)]
    return network


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("part", ["whitening", "compensation"])
def test_whitening_and_compensation(part, piece):
    measure, values, _ = decomposition.PARTS[part]
    for value in values:
        rows = measure(piece, value, silent)
        assert all(row["holds"] for row in rows.values() if "holds" in row), rows
        assert rows["plain"]["bits a weight"] == rows["whitened"]["bits a weight"]


@pytest.mark.usefixtures("data")
def test_slab_at_no_more_bytes(piece, monkeypatch):
    for name, value in (("ROUNDS", 4), ("RANKS", (2,))):
        monkeypatch.setattr(decomposition, name, value)
    rows = decomposition.slab(piece, 4.8, silent)
    bits = {name: row["bits a weight"] for name, row in rows.items() if "bits a weight" in row}
    assert bits["slab"] <= 4.8
    assert all(bits[other] >= bits["slab"] for other in ("magnitude", "wanda", "sparsegpt", "sparse + low rank"))
    assert rows["slab < magnitude"]["holds"] and rows["slab < wanda"]["holds"], rows


def test_a_run_goes_on_where_it_was(tmp_path, monkeypatch):
    made = []

    def part(network, value, show):
        made.append((network.name, value))
        return {"one": {"bits a weight": value}, "one < other": {"holds": True}}

    monkeypatch.setitem(decomposition.PARTS, "whitening", (part, (2, 3), "bits"))
    monkeypatch.setattr(decomposition, "Network", lambda name, *options: SimpleNamespace(name=name, layers=[1]))
    output = tmp_path / "figures.json"
    arguments = ["whitening", "--output", str(output), "--models", "a"]
    assert decomposition.main(arguments) == decomposition.main([*arguments, "b"]) == 0
    assert made == [("a", 2), ("a", 3), ("b", 2), ("b", 3)]
    assert json.loads(output.read_text())["whitening"]["b, 3 bits, one"] == {"bits a weight": 3}
    assert decomposition.main([*arguments, "--layers", "1"]) == 0
    assert made[4:] == [("a", 2), ("a", 3)], "of fewer layers"


def test_iteration():
    found = {}
    subspace_iteration.iteration(found, "example", subspace_iteration.spectrum(96, 160, 0.5))
    assert found["example"]["broken"] in ("", "q=2: time <= 1/5")  # no test measures time
    assert found["example, q=4"]["Frobenius"] < 1.01 < found["example, q=0"]["Frobenius"]
    known = dict(found)
    subspace_iteration.iteration(found, "example", None)
    assert found == known, "it is not measured again"
