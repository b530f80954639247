"""The checks on substitution: figures of every layer of the replica, and inequalities that can fail."""

import pytest
import torch

from graphc.progress import silent
from graphc.tools.separation import OUTER, checks, replica


def test_the_replica_replaces_each_layer_from_both_beginnings():
    images = torch.nn.functional.interpolate(torch.rand(64, 3, 4, 4), scale_factor=8, mode="bilinear")
    found = replica(images, images[:4], 1, 1, 0, silent)
    rows = found["rows"]
    assert [row["layer"] for row in rows] == [f"{part}.{n}" for part in ("encoder", "decoder") for n in range(5)]
    # [O, C, 5, 5] less [C, 5, 5] and [O, C]
    assert rows[2]["parameters saved"] == 32 * (32 * 25 - 25 - 32)
    assert all(row["dB lost, svd, not trained"] != row["dB lost, random, not trained"] for row in rows)


@pytest.mark.parametrize("cheap", [True, False])
def test_the_checks_hold_where_intermediate_layers_lose_least(cheap):
    def row(place):
        lost = 0.1 if (place in OUTER) is not cheap else 1.0
        return {"parameters saved": 1000, "dB lost, svd": lost, "dB lost, random": lost + (0.1 if cheap else -0.1)}

    found = checks([{"rows": [row(place) for place in range(10)]}])
    assert [each["holds"] for each in found] == [cheap] * 3
    assert "0.1 <= 1" in found[0]["check"] or "1 <= 0.1" in found[0]["check"]
