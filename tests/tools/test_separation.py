"""The checks on substitution: figures of every layer of the replica, and inequalities that can fail."""

import json

import pytest
import torch

from graphc.progress import silent
from graphc.tools import separation
from graphc.tools.separation import OUTER, checks, replica


def test_the_replica_replaces_each_layer_from_both_beginnings():
    images = torch.nn.functional.interpolate(torch.rand(64, 3, 4, 4), scale_factor=8, mode="bilinear")
    _, rows = replica(images, images[:4], 1, 1, 0, silent)
    assert list(rows) == [f"{part}.{n}" for part in ("encoder", "decoder") for n in range(5)]
    # [O, C, 5, 5] less [C, 5, 5] and [O, C]
    assert rows["encoder.2"]["parameters saved"] == 32 * (32 * 25 - 25 - 32)
    assert all(row["dB lost, svd, not trained"] != row["dB lost, random, not trained"] for row in rows.values())


@pytest.mark.parametrize("cheap", [True, False])
def test_the_checks_hold_where_intermediate_layers_lose_least(cheap):
    def row(place):
        lost = 0.1 if (place in OUTER) is not cheap else 1.0
        return {"parameters saved": 1000, "dB lost, svd": lost, "dB lost, random": lost + (0.1 if cheap else -0.1)}

    found = list(checks([[row(place) for place in range(10)]]).values())
    assert [each["holds"] for each in found] == [cheap] * 3
    assert (found[0]["less"], found[0]["more"]) == pytest.approx((0.1, 1) if cheap else (1, 0.1))


def test_a_run_goes_on_after_the_seeds_that_are_there(tmp_path, monkeypatch):
    made = []

    def trained(images, test, steps, more, seed, progress):
        made.append((steps, seed))
        row = {"parameters saved": 1000, "dB lost, svd": 1.0, "dB lost, random": 1.0 + seed}
        return 20.0, {f"layer {n}": row for n in range(10)}

    monkeypatch.setattr(separation, "replica", trained)
    monkeypatch.setattr(separation.data, "jpeg_images", lambda name, count: torch.zeros(1))
    output = tmp_path / "figures.json"
    arguments = ["autoencoder", "--output", str(output), "--seeds"]
    for seeds in (["0"], ["0", "4"], ["0", "--steps", "2"]):
        assert separation.main([*arguments, *seeds]) == 0
    assert made == [(500, 0), (500, 4), (2, 0)]
    found = json.loads(output.read_text())["autoencoder"]
    assert found["mean dB lost over the layers, from the SVD against from chance"] == {
        "less": 1.0, "more": 3.0, "holds": True,
    }  # fmt: skip


def test_layers_are_replaced_one_by_one(data, tmp_path):
    output = tmp_path / "figures.json"
    assert separation.main(["layers", "--limit", "100", "--seeds", "0", "--output", str(output)]) == 0
    found = json.loads(output.read_text())["layers, limit 100"]
    assert found["layer1.0.conv1"]["parameters saved"] == 16 * (16 * 9 - 9 - 16)
    assert found["layer1.0.conv1"]["error"] < found["layer1.0.conv1"]["error, random"]
    assert found["layers where a random start is nearer than the SVD, of 19"]["holds"]
