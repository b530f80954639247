"""The papers' inequalities on a piece of a real layer, judged on images that the encoders have not seen."""

from __future__ import annotations

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
    for figures in decomposition.PARTS[part](piece, silent).values():
        assert all(check["holds"] for check in figures["checks"].values()), figures
        sizes = [figures["rows"][name]["bits a weight"] for name in ("plain", "whitened")]
        assert sizes[0] == sizes[1]


@pytest.mark.usefixtures("data")
def test_slab_at_no_more_bytes(piece, monkeypatch):
    for name, value in (("ROUNDS", 4), ("RANKS", (2,))):
        monkeypatch.setattr(decomposition, name, value)
    for budget, figures in decomposition.slab(piece, silent, [4.8]).items():
        rows, checks = figures["rows"], figures["checks"]
        assert rows["slab"]["bits a weight"] <= float(budget.split()[0])
        assert all(rows[name]["bits a weight"] >= rows["slab"]["bits a weight"] for name in list(rows)[1:5])
        assert checks["slab < magnitude"]["holds"] and checks["slab < wanda"]["holds"], figures


def test_iteration():
    matrix = subspace_iteration.spectrum(96, 160, 0.5)
    (found,) = subspace_iteration.iteration({"example": matrix}).values()
    checks = dict(found["checks"])
    del checks["q=2: time <= 1/5"]  # no test measures time
    assert all(check["holds"] for check in checks.values()), found
    assert found["rows"]["q=4"]["Frobenius"] < 1.01 < found["rows"]["q=0"]["Frobenius"]
