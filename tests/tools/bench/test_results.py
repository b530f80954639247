"""What is read off the bench's results, and how it is shown."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
from rich.console import Console

from graphc.cli import main
from graphc.errors import GraphcError
from graphc.target import Target
from graphc.tools.bench import chart, measurement, peaks, results, suite
from graphc.tools.bench.engines import ENGINES
from graphc.tools.bench.workloads import WORKLOADS


def entry(engine: str, precision: str, seconds: float | None, status: str = "ok", **more: object) -> dict[str, object]:
    timed = {
        "seconds": seconds, "spread": [seconds, seconds], "cosine": 0.999,
        "rounds": [seconds and seconds * 2, seconds, seconds], "readable": [1e9, 1e9, 2e9],
    }  # fmt: skip
    timed = {} if seconds is None else timed
    return {"engine": engine, "precision": precision, "status": status, **timed, **more}


GROUP = {
    "workload": "resnet20",
    "batch": 1,
    "threads": 2,
    "operations": 8e9,
    "weights": 1e6,
    "peaks": {"fp32": 1e12, "int8": 4e12},
    "entries": [
        entry("torch eager", "fp32", 0.040),
        entry("graphc", "int8", 0.004, score=91.5),
        entry("graphc", "fp32", 0.010),
        entry("OpenVINO", "int8", 0.008),
        entry("ExecuTorch", "int8", 0.001, status="wrong", reason="outputs differ"),
        entry("IREE", "fp32", None, status="absent", reason="No module named 'iree'"),
    ],
}


def test_ratios_are_to_the_best_peer_whose_outputs_are_right():
    rows = {(row["engine"], row["precision"]): row for row in results.rank(GROUP)}
    assert rows["graphc", "int8"]["of best"] == rows["graphc", "int8"]["of same"] == 2
    assert rows["graphc", "fp32"]["of best"] == pytest.approx(0.8)
    assert rows["graphc", "fp32"]["of same"] == 4
    assert rows["OpenVINO", "int8"]["of best"] == 1
    assert "of best" not in rows["ExecuTorch", "int8"]
    assert next(iter(rows)) == ("ExecuTorch", "int8") and list(rows)[-1] == ("IREE", "fp32")


def test_shares_of_the_peaks():
    row = next(row for row in results.rank(GROUP) if (row["engine"], row["precision"]) == ("graphc", "int8"))
    assert row["operations"] == 2e12 and row["peak"] == 0.5
    # Of the rounds an eighth, a quarter, and an eighth of twice as much.
    assert row["bytes"] == 2.5e8 and row["read"] == 0.125


def test_table_names_what_is_absent_or_wrong_with_its_reason():
    console = Console(file=io.StringIO(), width=200)
    for table in results.tables([GROUP]):
        console.print(table)
    lines = console.file.getvalue().splitlines()
    assert lines[0].startswith("resnet20, batch 1, 2 threads")
    (ours,) = (line for line in lines if "graphc" in line and "int8" in line)
    assert "4.000" in ours and "2.00x" in ours and "50%" in ours and "91.5" in ours
    (absent,) = (line for line in lines if "IREE" in line)
    assert "absent: No module named 'iree'" in absent
    (wrong,) = (line for line in lines if "ExecuTorch" in line)
    assert "1.000" in wrong and "wrong: outputs differ" in wrong


def test_chart(tmp_path):
    chart.draw([GROUP, GROUP], tmp_path / "bench.png")
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_measured_is_kept_and_not_measured_again(monkeypatch, tmp_path, capsys):
    measured = []

    def measure(group, kind, engines, folder, rounds, log, say):
        measured.append((group.name, group.threads, kind, [engine.name for engine in engines], rounds))
        return GROUP["entries"]

    monkeypatch.setattr(measurement, "measure", measure)
    fastest = iter([{"int8": 1.0, "fp32": 2.0}, {"int8": 3.0, "fp32": 1.0}])
    monkeypatch.setattr(measurement, "peaks", lambda threads: next(fastest))
    monkeypatch.setattr(type(WORKLOADS["gemm"]), "cost", lambda self, batch: (10, 20))
    output = tmp_path / "bench.json"
    command = ["bench", "--models", "GEMM", "--engines", "openvino", "--threads", "1", "--rounds", "2"]
    command += ["--output", str(output), "--cache", str(tmp_path / "cache"), "--json"]
    assert main(command) == 0
    assert measured == [("gemm", 1, "static", ["OpenVINO"], 2)]
    printed = json.loads(capsys.readouterr().out)
    assert printed["groups"][0]["peaks"] == {"int8": 3.0, "fp32": 2.0}
    assert printed["groups"][0]["entries"][0]["engine"] == "ExecuTorch"
    assert json.loads(output.read_text())["groups"][0]["entries"] == GROUP["entries"]
    assert main(command) == 0
    assert main([*command, "--show"]) == 0
    assert len(measured) == 1


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "bench.json").write_text('{"name": "no results"}')
    with pytest.raises(GraphcError, match=r"holds no results of the bench: name another file for --output"):
        results.read(tmp_path / "bench.json")


def test_unknown_names(capsys):
    assert main(["bench", "--models", "resnet19"]) == 1
    assert "unknown model resnet19; there are: resnet18, resnet50" in capsys.readouterr().err
    assert main(["bench", "--engines", "onednn"]) == 1
    assert "unknown engine onednn; there are: graphc, ONNX Runtime" in capsys.readouterr().err


def test_groups():
    found = [(group.name, group.batch, group.threads) for group in suite.groups(["resnet18", "minilm"], [1, 8], [1, 2])]
    assert found == [
        ("resnet18", 1, 1), ("resnet18", 1, 2), ("resnet18", 8, 1), ("resnet18", 8, 2),
        ("minilm", 1, 1), ("minilm", 1, 2),
    ]  # fmt: skip


def test_machine_says_what_it_is_and_not_which():
    found = results.machine()
    assert found["cpus"] >= 1 and found["features"] == list(Target.parse("host").features)
    assert set(found) == {
        "cpu", "family, model, stepping", "features", "cpus", "virtual", "caches", "system", "python",
    }  # fmt: skip


def test_every_engine_runs_what_it_says():
    assert {kind for engine in ENGINES.values() for kind in engine.precisions} == {w.kind for w in WORKLOADS.values()}


@pytest.mark.parametrize("threads", [1, 2])
def test_peaks(threads):
    found = peaks.Peaks(Target.parse("host"), threads)
    arithmetic = found.arithmetic()
    assert "fp32" in arithmetic and min(found.read(), *arithmetic.values()) > 1e8


def test_cost_is_of_the_network_alone():
    assert WORKLOADS["gemm"].cost(1) == (2 * 1024**3, 1024**2)


def test_what_making_the_inputs_costs_does_not_count(monkeypatch):
    gemm = WORKLOADS["gemm"]
    square = dataclasses.replace(gemm, inputs=lambda batch: (gemm.inputs(batch)[0] @ gemm.inputs(batch)[0],))
    assert square.cost(1) == gemm.cost(1)
