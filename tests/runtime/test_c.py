"""The C sources themselves: thread pool, loader and interface, under sanitizers where the compiler has them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from graphc.artifact import Artifact
from graphc.program import Program
from graphc.runtime import zig
from graphc.structure import Structure
from graphc.target import Target, machine_arch

HERE = Path(__file__).parent
EXAMPLE = HERE.parent.parent / "examples" / "c" / "classify.c"
Compile = Callable[..., Path]


def run(*command: str | Path, status: int = 0) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("sanitizer", ["thread", "undefined"])
def test_thread_pool(compile_c: Compile, sanitizer: str) -> None:
    assert run(compile_c(HERE / "pool.c", "-O1", f"-fsanitize={sanitizer}"), "2000") == "ok\n"


def test_thread_pool_on_arm64(compile_c: Compile, emulated: str) -> None:
    program = compile_c(HERE / "pool.c", "-O2", "-target", "aarch64-linux-musl", "-static")
    assert run("qemu-aarch64", program, "2000") == "ok\n"


def test_damaged_artifacts(compile_c: Compile, make_sample, tmp_path: Path) -> None:
    make_sample().save(tmp_path / "model.graphc")
    program = compile_c(HERE / "damage.c", "-O1", "-fsanitize=undefined")
    accepted, refused = map(int, run(program, tmp_path / "model.graphc", tmp_path / "damaged", "500").split())
    assert accepted + refused == 10_000 and refused > 1000


def test_interface(compile_c: Compile, make_sample, expected, tmp_path: Path) -> None:
    make_sample().save(tmp_path / "model.graphc")
    y, total = expected(np.arange(24).reshape(3, 8).astype(np.float32) % 5, np.ones((3, 8), bool))
    program = compile_c(HERE / "api.c", zig.SOURCES / "graphc.c")
    assert run(program, tmp_path / "model.graphc").splitlines() == [
        "batch 1 100",
        "x 1 [ 3 8 ] 96",
        "mask 9 [ 3 8 ] 24",
        "y 1 [ 3 4 ] 48",
        "total 0 [ ] 8",
        "step none",
        "step linear",
        "step total",
        "step none",
        "out of range: -1",
        f"run: 0 {' '.join(f'{value:g}' for value in y.flat)} total {total:g}",
        "timed: 1",
        "run: -1 size 'batch' must lie between 1 and 100, got 101",
        "run: -1 the model has 1 dynamic sizes, none given",
        "run: -1 step 'linear' failed",
    ]


def test_load_errors(compile_c: Compile, make_sample, tmp_path: Path) -> None:
    program = compile_c(HERE / "api.c", zig.SOURCES / "graphc.c")
    model = tmp_path / "model.graphc"
    assert "No such file or directory" in run(program, model, status=1)
    assert "too short, or not a regular file" in run(program, tmp_path, status=1)
    model.write_bytes(b"")
    assert "too short, or not a regular file" in run(program, model, status=1)
    model.write_bytes(bytes(1000))
    assert run(program, model, status=1) == "error: not a graphc artifact\n"
    make_sample().save(model)
    content = bytearray(model.read_bytes())
    content[8] = 9
    model.write_bytes(content)
    assert "format version 9, this runtime reads 1" in run(program, model, status=1)
    content[8], content[-1] = 1, content[-1] ^ 1
    model.write_bytes(content)
    assert "does not match its hash" in run(program, model, status=1)
    make_sample(feature="warp-drive").save(model)
    assert "lacks features that the artifact was compiled for: warp-drive" in run(program, model, status=1)
    make_sample("arm64" if machine_arch() == "x86-64" else "x86-64").save(model)
    assert "compiled for another architecture" in run(program, model, status=1)


def test_example_classifies_as_python_does(compile_c: Compile, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    target = Target.parse(machine_arch())
    zig.link_code(target.triple, [HERE / "sample" / "classifier.c"], tmp_path / "code.so")
    plan = {
        "target": target.to_json(),
        "inputs": [{"name": "image", "dtype": "f32", "shape": [1, 8]}],
        "outputs": [{"name": "logits", "dtype": "f32", "shape": [1, 3]}],
        "symbols": [],
        "init_steps": 0,
        "steps": [{"kernel": "classify", "path": ""}],
    }
    manifest = {"inputs": Structure.of(((0,), {})).to_json(), "outputs": Structure.of(0).to_json()}
    weights = rng.standard_normal((3, 8)).astype(np.float32)
    artifact = Artifact.build(Program((tmp_path / "code.so").read_bytes(), weights.tobytes(), plan), "", {}, manifest)
    artifact.save(tmp_path / "model.graphc")
    image = rng.standard_normal((1, 8)).astype(np.float32)
    (tmp_path / "image.f32").write_bytes(image.tobytes())

    program = compile_c(EXAMPLE, zig.SOURCES / "graphc.c")
    *logits, answer = run(program, tmp_path / "model.graphc", tmp_path / "image.f32").splitlines()
    values = artifact.run(image)
    assert logits == [f"{index} {value:g}" for index, value in enumerate(values[0])]
    assert answer == f"class {values.argmax()}"

    (tmp_path / "image.f32").write_bytes(bytes(31))
    run(program, tmp_path / "model.graphc", tmp_path / "image.f32", status=1)
