"""The tuning program, with a search that finds nothing."""

from __future__ import annotations

import json

from graphc.tools import tuning
from graphc.tuning import Tuned


def test_figures_and_database_are_kept(data, tmp_path, monkeypatch):
    def tune(graph, target, database, progress, save):
        database.of(target)["a kernel"] = Tuned({"rows": 8}, ("rows",), 900, 1000)
        save(database)
        return database.of(target)

    monkeypatch.setattr(tuning, "tune", tune)
    output, database = tmp_path / "figures.json", tmp_path / "tuned.json"
    command = ["resnet20_int8", "--limit", "2", "--output", str(output), "--database", str(database)]
    assert tuning.main(command) == 0
    figures = json.loads(output.read_text())["resnet20_int8, limit 2"]
    assert figures["kernels"] == figures["kernels that gain"] == 1
    assert figures["default / tuned"] > 0, "how much is the machine's affair"
    assert '"rows": 8' in database.read_text()
    assert tuning.main(command) == 0 and json.loads(output.read_text())["resnet20_int8, limit 2"] == figures
