"""A small artifact made by hand: y, total = f(x, mask=mask) with a dynamic batch, and kernels in C."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from graphc.artifact import Artifact
from graphc.program import Program
from graphc.runtime import zig
from graphc.structure import Structure
from graphc.target import Target, machine_arch

SAMPLE = Path(__file__).parent / "sample"
PACKED = np.random.default_rng(0).integers(-20, 20, (4, 8), dtype=np.int8)


@pytest.fixture(scope="session")
def expected() -> Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """expected(x, mask): what the sample computes."""

    def compute(x: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = (x * mask) @ (0.5 * PACKED.T.astype(np.float32))
        return y, y.astype(np.float64).sum()

    return compute


@pytest.fixture(scope="session")
def example() -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """example(batch): the sample's inputs, small integers whose sums are exact in any order."""

    def make(batch: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(batch)
        return rng.integers(-5, 5, (batch, 8)).astype(np.float32), rng.random((batch, 8)) < 0.5

    return make


@pytest.fixture(scope="session")
def make_sample(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Artifact]:
    """make_sample(arch, feature): the artifact for an architecture, needing one CPU feature."""

    @cache
    def code(arch: str, feature: str | None) -> bytes:
        folder = tmp_path_factory.mktemp("sample")
        entry = (SAMPLE / "entry.c").read_text()
        (folder / "entry.c").write_text(f'#define FEATURE "{feature}"\n{entry}' if feature else entry)
        zig.link_code(Target.parse(arch).triple, [SAMPLE / "kernels.c", folder / "entry.c"], folder / "code.so")
        return (folder / "code.so").read_bytes()

    def make(arch: str = machine_arch(), feature: str | None = None) -> Artifact:
        plan = {
            "target": Target.parse(arch).to_json(),
            "inputs": [
                {"name": "x", "dtype": "f32", "shape": ["batch", 8]},
                {"name": "mask", "dtype": "bool", "shape": ["batch", 8]},
            ],
            "outputs": [
                {"name": "y", "dtype": "f32", "shape": ["batch", 4]},
                {"name": "total", "dtype": "f64", "shape": []},
            ],
            "symbols": [{"name": "batch", "minimum": 1, "maximum": 100}],
            "arena_bytes": 1600,
            "state_bytes": 128,
            "init_steps": 1,
            "steps": [{"kernel": name, "path": f"layers.{name}"} for name in ("unpack", "linear", "total")],
        }
        weights = bytes(64) + PACKED.tobytes()
        manifest = {
            "inputs": Structure.of(((0,), {"mask": 0})).to_json(),
            "outputs": Structure.of({"y": 0, "more": [0, None]}).to_json(),
        }
        return Artifact.build(Program(code(arch, feature), weights, plan), "graph text\n", {"layers": []}, manifest)

    return make


@pytest.fixture
def compile_c(tmp_path: Path) -> Callable[..., Path]:
    """compile_c(source, ...flags): a program for this machine, all warnings being errors."""

    def compile_program(*arguments: str | Path) -> Path:
        program = tmp_path / "program"
        command = [sys.executable, "-m", "ziglang", "cc", "-std=c11", "-g", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([*command, f"-I{zig.SOURCES}", *map(str, arguments), "-o", str(program)], check=True)
        return program

    return compile_program


@pytest.fixture(scope="session")
def emulated() -> str:
    """An architecture that only an emulator can run here; skips where that is not installed."""
    if machine_arch() != "x86-64" or shutil.which("qemu-aarch64") is None:
        pytest.skip("needs an x86-64 machine with qemu-aarch64: apt install qemu-user")
    return "arm64"
