"""A small artifact made by hand: y, total = f(x, mask=mask) with a dynamic batch, kernels in C instead of a backend's."""

from __future__ import annotations

import shutil
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

MakeSample = Callable[..., Artifact]


def expected(x: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the sample computes."""
    y = (x * mask) @ (0.5 * PACKED.T.astype(np.float32))
    return y, y.astype(np.float64).sum()


def inputs(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Small integers: sums are exact in any order."""
    rng = np.random.default_rng(batch)
    return rng.integers(-5, 5, (batch, 8)).astype(np.float32), rng.random((batch, 8)) < 0.5


@pytest.fixture(scope="session")
def make_sample(tmp_path_factory: pytest.TempPathFactory) -> MakeSample:
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


@pytest.fixture(scope="session")
def qemu() -> str:
    """Skips where the emulator of the other architecture is missing."""
    if machine_arch() != "x86-64" or shutil.which("qemu-aarch64") is None:
        pytest.skip("needs an x86-64 machine with qemu-aarch64: apt install qemu-user")
    return "arm64"
