"""Artifacts for another architecture, under qemu."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

import graphc
from graphc.errors import GraphcError, InputError, TargetError
from graphc.runtime import zig
from graphc.runtime.emulator import build_runner
from graphc.target import machine_arch


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_same_results_as_native(make_sample, example, expected, emulated: str, tmp_path: Path, threads: int) -> None:
    make_sample(emulated).save(tmp_path / "model.graphc")
    artifact = graphc.load(tmp_path / "model.graphc", threads=threads)
    for batch in (1, 2, 7, 100, 3):
        x, mask = example(batch)
        result = artifact.run(x, mask=mask)
        y, total = expected(x, mask)
        np.testing.assert_array_equal(result["y"], y)
        assert result["more"][0] == total


def test_says_that_it_emulates(make_sample, example, emulated: str, caplog: pytest.LogCaptureFixture) -> None:
    artifact = make_sample(emulated)
    x, mask = example(2)
    with caplog.at_level(logging.WARNING, logger="graphc"):
        artifact.run(x, mask=mask)
        artifact.run(x, mask=mask)
    assert sum("running arm64 code under" in record.getMessage() for record in caplog.records) == 1


def test_wrong_inputs_leave_the_process_usable(make_sample, example, expected, emulated: str) -> None:
    artifact = make_sample(emulated)
    x, mask = example(4)
    for _ in range(2):
        with pytest.raises(InputError, match=r"must have the shape \(4, 8\), got \(4, 7\)"):
            artifact.run(x[:, :7], mask=mask)
        np.testing.assert_array_equal(artifact.run(x, mask=mask)["y"], expected(x, mask)[0])


def test_a_failing_step_is_an_error_and_the_next_run_works(make_sample, example, expected, emulated: str) -> None:
    artifact = make_sample(emulated)
    x, mask = example(50)
    with pytest.raises(GraphcError, match="step 'linear' failed"):
        artifact.run(np.full_like(x, np.nan), mask=mask)
    np.testing.assert_array_equal(artifact.run(x, mask=mask)["y"], expected(x, mask)[0])


def test_a_dead_process_is_an_error_and_the_next_run_works(make_sample, example, expected, emulated: str) -> None:
    artifact = make_sample(emulated)
    x, mask = example(3)
    artifact.run(x, mask=mask)
    emulator = artifact._executor
    emulator._process.kill()
    with pytest.raises(GraphcError, match="the emulated program ended with status -9"):
        emulator.shapes([3], 6)
    np.testing.assert_array_equal(artifact.run(x, mask=mask)["y"], expected(x, mask)[0])


def test_profile(make_sample, example, emulated: str) -> None:
    x, mask = example(3)
    rows = make_sample(emulated).profile(x, mask=mask)
    assert [name for name, _, _ in rows] == ["linear", "total"]
    assert all(milliseconds > 0 for _, _, milliseconds in rows)


def test_arm64_features(make_sample, example, emulated: str) -> None:
    x, mask = example(1)
    for feature in ("neon", "dotprod", "fullfp16", "i8mm", "bf16"):
        make_sample(emulated, feature).run(x, mask=mask)
    with pytest.raises(GraphcError, match="lacks features that the artifact was compiled for: warp-drive"):
        make_sample(emulated, "warp-drive").run(x, mask=mask)


def test_missing_emulator(make_sample, example, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "arm64" if machine_arch() == "x86-64" else "x86-64"
    artifact = make_sample(other)
    monkeypatch.setenv("PATH", "")
    x, mask = example(1)
    with pytest.raises(TargetError, match=r"install qemu-\w+ to emulate it .*apt install qemu-user"):
        artifact.run(x, mask=mask)


def test_runner_is_built_once_per_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    monkeypatch.setenv("ZIG_GLOBAL_CACHE_DIR", str(cache / "zig"))  # zig keeps its libc
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = build_runner("arm64")
    written = first.stat().st_mtime_ns
    assert build_runner("arm64") == first
    assert first.stat().st_mtime_ns == written
    assert [path.name for path in (tmp_path / "graphc").iterdir()] == [first.name]


def test_missing_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zig, "find_spec", lambda name: None)
    with pytest.raises(TargetError, match="pip install ziglang"):
        zig.link_runner("aarch64-linux-musl", tmp_path / "runner")


def test_a_failing_link_shows_what_the_linker_said(tmp_path: Path) -> None:
    (tmp_path / "entry.c").write_text('#include "model.h"\nconst graphc_program graphc_the_program = {nonsense};\n')
    with pytest.raises(TargetError, match="nonsense"):
        zig.link_code("x86_64-linux-gnu", [tmp_path / "entry.c"], tmp_path / "code.so")
