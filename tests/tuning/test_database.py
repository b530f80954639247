"""The tuning database: written, read, merged, and taken by compilations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import graphc
from graphc.artifact import Artifact
from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.kernel import KernelBuilder
from graphc.backends.tvm.templates import matrix_product
from graphc.errors import TuningError
from graphc.target import Target
from graphc.tuning import Database, Tuned
from graphc.tuning.database import SHIPPED, device

HOST, ARM = Target.parse("host"), Target.parse("arm64")


def entry(**parameters: int) -> Tuned:
    return Tuned(parameters, tuple(parameters), 10.0, 12.0)


def test_what_was_written_is_read_back_to_the_byte(tmp_path: Path) -> None:
    database = Database({device(HOST): {"b": entry(rows=8), "a": entry(rows=4, columns=2)}})
    database.save(tmp_path / "new" / "one.json")
    again = Database.load(tmp_path / "new" / "one.json")
    assert again.entries == database.entries
    again.save(tmp_path / "two.json")
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "new" / "one.json").read_bytes()


def test_the_user_s_entries_win_over_the_shipped_ones(tmp_path: Path) -> None:
    Database({device(HOST): {"a": entry(rows=4), "b": entry(rows=2)}, device(ARM): {"a": entry(rows=1)}}).save(
        tmp_path / "shipped.json"
    )
    Database({device(HOST): {"a": entry(rows=8)}}).save(tmp_path / "own.json")
    merged = Database.load(tmp_path / "shipped.json", tmp_path / "own.json", tmp_path / "absent.json")
    assert merged.parameters(HOST) == {"a": {"rows": 8}, "b": {"rows": 2}}
    assert merged.parameters(ARM) == {"a": {"rows": 1}}


def test_the_shipped_database_can_be_read() -> None:
    assert all(found for found in Database.load(SHIPPED).entries.values())


@pytest.mark.parametrize("text", ["{", "[]", '{"x": {"w": {"parameters": {"rows": "eight"}}}}', '{"x": 3}'])
def test_a_damaged_database_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tuning.json"
    path.write_text(text)
    with pytest.raises(TuningError, match=r"tuning\.json"):
        Database.load(path)


@pytest.fixture
def parameterized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products have a parameter `probe`, 1 unless tuned."""
    emit = matrix_product.emit

    def asking(group: Group, k: KernelBuilder) -> None:
        k.parameter("probe", 1, (1, 2))
        emit(group, k)

    monkeypatch.setattr(matrix_product, "emit", asking)


def probed(artifact: Artifact) -> dict[str, int]:
    """The workloads that know the parameter, and its values."""
    steps = artifact.plan["steps"]
    return {s["workload"]: s["parameters"]["probe"] for s in steps if "probe" in s.get("parameters", {})}


@pytest.mark.parametrize(("value", "taken"), [(2, 2), (3, 1)])
def test_a_compilation_takes_the_user_s_entries_where_they_are_legal(
    parameterized: None, value: int, taken: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = nn.Linear(4, 8), torch.randn(1, 4)
    (workload,) = found = probed(graphc.compile(model, "host", (x,)))
    assert found == {workload: 1}
    Database({device(HOST): {workload: entry(probe=value)}}).save(tmp_path / "tuning.json")
    monkeypatch.setenv("GRAPHC_TUNING", str(tmp_path / "tuning.json"))
    assert probed(graphc.compile(model, "host", (x,))) == {workload: taken}
    assert probed(graphc.compile(model, "arm64", (x,))) == {workload: 1}
