"""Engines in processes of their own, taking turns: how they are held, and what is said of those that fail."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graphc.tools.bench import measurement
from graphc.tools.bench.engines import EAGER, Engine
from graphc.tools.bench.measurement import Group
from graphc.tools.bench.process import EngineError, Process


@pytest.fixture
def importable(monkeypatch):
    """The workers find this folder's modules."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def state(pid: int) -> str:
    """The process's state as Linux knows it: T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def settled(pid: int, wanted: str) -> bool:
    """Signals take effect a moment after they are sent."""
    deadline = time.monotonic() + 10
    while state(pid) != wanted and time.monotonic() < deadline:
        time.sleep(0.001)
    return state(pid) == wanted


def engine(*precisions: str, module: str = "tiny") -> Engine:
    return Engine("tiny", "torch", module, {"static": precisions})


def case(folder: Path, precision: str = "fp32") -> dict[str, object]:
    return {
        "module": "tiny", "workload": "tiny:tiny", "batch": 2, "precision": precision, "threads": 1,
        "folder": str(folder / precision),
    }  # fmt: skip


def measure(folder: Path, *engines: Engine, workload: str = "tiny:tiny", rounds: int = 2):
    log, said = (folder / "log.txt").open("w"), []
    with log:
        entries = measurement.measure(
            Group(workload, 2, 1), "static", engines, folder, rounds, log, said.append, score=4
        )
    return {(entry["engine"], entry["precision"]): entry for entry in entries}, said


def test_a_worker_runs_only_while_it_is_asked(importable, tmp_path):
    (tmp_path / "fp32").mkdir()
    process = Process({max(os.sched_getaffinity(0))})
    try:
        assert settled(process.pid, "T")
        assert process.ask("prepare", 60, case=case(tmp_path)) == {}
        assert settled(process.pid, "T")
        process.ask("load", 60, case=case(tmp_path))
        seconds = process.ask("time", 60, warm=1, count=5)["seconds"]
        assert len(seconds) == 5 and min(seconds) > 0
        assert settled(process.pid, "T")
        assert os.sched_getaffinity(process.pid) == {max(os.sched_getaffinity(0))}
    finally:
        process.end()
    assert not Path(f"/proc/{process.pid}").exists()


def test_a_stopped_worker_dies_with_the_bench(importable, tmp_path):
    code = f"""if True:
        import os
        from graphc.tools.bench.process import Process
        process = Process(os.sched_getaffinity(0))
        process.ask("prepare", 60, case={case(tmp_path, "wrong")!r})
        print(process.pid, flush=True)
        os.kill(os.getpid(), 9)
    """
    (tmp_path / "wrong").mkdir()
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and state(pid) != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists() or state(pid) == "Z"


def test_a_request_that_takes_too_long_ends_the_worker(importable, tmp_path):
    process = Process(os.sched_getaffinity(0))
    with pytest.raises(EngineError, match=r"no reply in 0 s"):
        process.ask("prepare", 0.01, case=case(tmp_path))
    assert not Path(f"/proc/{process.pid}").exists()
    process.end()


def test_graphc_beside_torch(importable, tmp_path):
    compiled = Engine("graphc", "graphc", "graphc.tools.bench.engines.compiled", {"static": ("fp32", "int8")})
    entries, said = measure(tmp_path, compiled)
    assert list(entries) == [("torch eager", "fp32"), ("graphc", "fp32"), ("graphc", "int8")]
    for entry in entries.values():
        assert entry["status"] == "ok", entry
        assert entry["seconds"] == min(entry["rounds"]) > 0
        assert len(entry["rounds"]) == len(entry["readable"]) == 2 and entry["runs"] >= 2
        assert entry["spread"][0] <= entry["median"] <= entry["spread"][1]
        assert entry["score"] == 100
    assert entries["torch eager", "fp32"]["cosine"] == pytest.approx(1)
    assert entries["graphc", "fp32"]["error"] < 1e-5 < entries["graphc", "int8"]["error"] < 0.1
    assert "round 2 of 2: graphc int8" in said


def test_engines_that_fail_are_named_with_their_reason(importable, tmp_path):
    entries, _ = measure(
        tmp_path, engine("fp32", "unpreparable", "missing", "dying", "wrong", "not a number", "other shape")
    )
    status = {precision: (entry["status"], entry.get("reason", "")) for (_, precision), entry in entries.items()}
    assert status["fp32"] == ("ok", "")
    assert status["unpreparable"] == ("failed", "ValueError: this network is not supported")
    assert status["missing"] == ("absent", "ModuleNotFoundError: No module named 'a_package_that_is_not_there'")
    assert status["dying"] == ("failed", "the process ended with status 3")
    assert status["wrong"][0] == status["not a number"][0] == status["other shape"][0] == "wrong"
    assert "cosine -1.0" in status["wrong"][1] and "cosine None" in status["other shape"][1]
    assert "seconds" not in entries["tiny", "missing"] and "seconds" in entries["tiny", "wrong"]


def test_weights_of_few_bits_are_judged_by_what_torch_makes_of_them(importable, tmp_path):
    entries, _ = measure(tmp_path, engine("int2", module="own_weights"))
    entry = entries["tiny", "int2"]
    assert entry["status"] == "ok"
    assert entry["cosine of own weights"] == pytest.approx(1) and entry["cosine"] < 0.98


def test_what_is_prepared_is_kept_until_the_version_changes(importable, tmp_path, monkeypatch):
    measure(tmp_path, engine("fp32"), rounds=1)
    stamp = tmp_path / "tiny-2-tiny-fp32" / "prepared at"
    first = stamp.read_text()
    measure(tmp_path, engine("fp32"), rounds=1)
    assert stamp.read_text() == first
    monkeypatch.setattr(measurement, "version", lambda package: "another")
    measure(tmp_path, engine("fp32"), rounds=1)
    assert stamp.read_text() != first


def test_a_network_that_torch_does_not_run(importable, tmp_path):
    with pytest.raises(EngineError, match=r"torch itself does not run this network: RuntimeError: mat1 and mat2"):
        measure(tmp_path, workload="tiny:broken")


def test_versions():
    assert measurement.package_version("no-such-package") is None
    assert measurement.package_version("torch") == measurement.package_version(EAGER.package) is not None
    assert measurement.package_version("graphc") == measurement.package_version("graphc")


def test_log_takes_what_engines_print(importable, tmp_path):
    measurement.prepare(
        Group("tiny:tiny", 1, 1),
        "static",
        [engine("unpreparable")],
        tmp_path,
        (log := (tmp_path / "log").open("w+")),
        (said := io.StringIO()).write,
    )
    with log:
        log.seek(0)
        assert "and more" in log.read()
    assert "tiny unpreparable: ValueError: this network is not supported" in said.getvalue()
