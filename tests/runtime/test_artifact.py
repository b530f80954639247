"""Artifacts that run in this process: results, structures, errors, threads, and what is left behind."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import graphc
from graphc.artifact import Artifact
from graphc.errors import ArtifactError, GraphcError, InputError, TargetError
from graphc.program import Program
from graphc.runtime import loader, zig
from graphc.structure import Structure
from graphc.target import Target, machine_arch

DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact that returns its ten inputs, one of every dtype, [n, 3]."""
    folder = tmp_path_factory.mktemp("echo")
    target = Target.parse(machine_arch())
    zig.link_code(target.triple, [Path(__file__).parent / "sample" / "echo.c"], folder / "code.so")
    tensors = [{"name": dtype, "dtype": dtype, "shape": ["n", 3]} for dtype in DTYPES]
    plan = {
        "target": target.to_json(),
        "inputs": tensors,
        "outputs": tensors,
        "symbols": [{"name": "n", "minimum": 0, "maximum": 5}],
        "init_steps": 0,
        "steps": [{"kernel": str(index), "path": ""} for index in range(len(DTYPES))],
    }
    manifest = {
        "inputs": Structure.of(((0,) * len(DTYPES), {})).to_json(),
        "outputs": Structure.of((0,) * len(DTYPES)).to_json(),
    }
    return Artifact.build(Program((folder / "code.so").read_bytes(), b"", plan), "", {}, manifest)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 2, 7, 100])
def test_results_in_the_models_structure(
    make_sample, example, expected, tmp_path: Path, threads: int, batch: int
) -> None:
    make_sample().save(tmp_path / "model.graphc")
    artifact = graphc.load(tmp_path / "model.graphc", threads=threads)
    x, mask = example(batch)
    for _ in range(20):
        result = artifact.run(x, mask=mask)
        y, total = expected(x, mask)
        np.testing.assert_array_equal(result["y"], y)
        assert result["more"][0] == total and result["more"][1] is None
        assert isinstance(result["more"], list) and result["more"][0].shape == ()


def test_torch_tensors_and_strided_arrays(make_sample, example, expected) -> None:
    artifact = make_sample()
    x, mask = example(6)
    tensors = torch.from_numpy(x).requires_grad_(), torch.from_numpy(mask)
    strided = np.asfortranarray(x), np.repeat(mask, 2, axis=0)[::2]
    transposed = torch.from_numpy(x.T.copy()).T, torch.from_numpy(mask)
    for given_x, given_mask in (tensors, strided, transposed):
        np.testing.assert_array_equal(artifact.run(given_x, mask=given_mask)["y"], expected(x, mask)[0])


def test_results_belong_to_the_caller(make_sample, example, expected) -> None:
    artifact = make_sample()
    x, mask = example(3)
    first = artifact.run(x, mask=mask)["y"]
    kept = first.copy()
    artifact.run(-x, mask=mask)
    np.testing.assert_array_equal(first, kept)
    first[:] = 0
    np.testing.assert_array_equal(artifact.run(x, mask=mask)["y"], kept)


def every_dtype(n: int) -> tuple[torch.Tensor, ...]:
    values = 50 * torch.randn((n, 3), generator=torch.Generator().manual_seed(n))
    return tuple(values.abs().to(dtype) for dtype in DTYPES.values())


@pytest.mark.parametrize("n", [0, 1, 5])
def test_every_dtype_arrives_and_returns_unchanged(echo: Artifact, n: int) -> None:
    tensors = every_dtype(n)
    for given, result in zip(tensors, echo.run(*tensors), strict=True):
        wanted = (given.float() if given.dtype == torch.bfloat16 else given).numpy()
        assert result.dtype == wanted.dtype
        np.testing.assert_array_equal(result, wanted)


def test_numpy_bfloat16(echo: Artifact) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    arrays = [tensor.numpy() for tensor in every_dtype(4) if tensor.dtype != torch.bfloat16]
    arrays.insert(3, np.arange(12).reshape(4, 3).astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(echo.run(*arrays)[3], np.arange(12, dtype=np.float32).reshape(4, 3))


def test_sizes_that_change_from_run_to_run(echo: Artifact) -> None:
    for n in (3, 1, 3, 0, 5):
        inputs = [torch.full((n, 3), 1).to(dtype) for dtype in DTYPES.values()]
        assert [result.shape for result in echo.run(*inputs)] == [(n, 3)] * len(DTYPES)


def test_bits_of_bfloat16_are_no_bfloat16(echo: Artifact) -> None:
    inputs = [torch.zeros(1, 3).to(dtype) for dtype in DTYPES.values()]
    inputs[list(DTYPES).index("bf16")] = np.zeros((1, 3), np.uint16)
    with pytest.raises(InputError, match="must be bfloat16, got uint16"):
        echo.run(*inputs)


def test_run_many(echo: Artifact) -> None:
    results = list(echo.run_many(every_dtype(n) for n in (1, 3)))
    assert [result[0].shape for result in results] == [(1, 3), (3, 3)]


def test_wrong_inputs(make_sample, example) -> None:
    artifact = make_sample()
    x, mask = example(4)
    cases = [
        ((x,), {}, r"kwargs must have the keys \['mask'\], got \[\]"),
        ((x, mask), {}, "args must have 1 items, got 2"),
        ((x.astype(np.float64),), {"mask": mask}, r"input 'x' \(f32\[batch, 8\]\) must be float32, got float64"),
        ((torch.from_numpy(x).to(torch.bfloat16),), {"mask": mask}, "must be float32, got bfloat16"),
        ((x,), {"mask": mask.astype(np.uint8)}, "input 'mask' .* must be bool, got uint8"),
        ((x[0],), {"mask": mask}, r"input 'x' .* has 2 dimensions, got shape \(8,\)"),
        ((x[:, :7],), {"mask": mask}, r"input 'x' .* must have the shape \(4, 8\), got \(4, 7\)"),
        ((x,), {"mask": mask[:3]}, r"input 'mask' .*: 'batch' is 4 elsewhere and 3 here"),
        ((x[:0],), {"mask": mask[:0]}, "'batch' must lie between 1 and 100, the inputs make it 0"),
        (example(101)[:1], {"mask": example(101)[1]}, "'batch' must lie between 1 and 100, the inputs make it 101"),
    ]
    for args, kwargs, message in cases:
        with pytest.raises(InputError, match=message):
            artifact.run(*args, **kwargs)


def test_a_failing_step_is_an_error_and_the_next_run_works(make_sample, example, expected) -> None:
    artifact = make_sample()
    x, mask = example(50)
    broken = x.copy()
    broken[30, 3] = np.nan  # the sample's kernel refuses it, in one task of its parallel loop
    for _ in range(3):
        with pytest.raises(GraphcError, match="step 'linear' failed"):
            artifact.run(broken, mask=mask)
        np.testing.assert_array_equal(artifact.run(x, mask=mask)["y"], expected(x, mask)[0])


def test_calls_from_many_threads(make_sample, example, expected) -> None:
    artifact = make_sample()

    def check(batch: int) -> None:
        x, mask = example(batch)
        np.testing.assert_array_equal(artifact.run(x, mask=mask)["y"], expected(x, mask)[0])

    with ThreadPoolExecutor(4) as executor:
        list(executor.map(check, [1 + index % 100 for index in range(400)]))


def test_profile_names_steps_and_layers(make_sample, example) -> None:
    x, mask = example(4)
    rows = make_sample().profile(x, mask=mask)
    assert [(name, path) for name, path, _ in rows] == [("linear", "layers.linear"), ("total", "layers.total")]
    assert all(0 < milliseconds < 1000 for _, _, milliseconds in rows)


def test_what_an_artifact_tells(make_sample, tmp_path: Path) -> None:
    artifact = make_sample()
    artifact.save(tmp_path / "model.graphc")
    size = artifact.size
    assert size == size.weights + size.code and size.weights == 96
    assert size.file == (tmp_path / "model.graphc").stat().st_size > size
    assert artifact.graph_text == "graph text\n"
    loaded = graphc.load(tmp_path / "model.graphc")
    assert loaded.content_hash == artifact.content_hash
    loaded.save(tmp_path / "again.graphc")
    assert (tmp_path / "again.graphc").read_bytes() == (tmp_path / "model.graphc").read_bytes()


def test_linking_twice_gives_the_same_bytes(make_sample, tmp_path: Path) -> None:
    sample = Path(__file__).parent / "sample"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "entry.c").write_text((sample / "entry.c").read_text())
        parts = [sample / "kernels.c", tmp_path / name / "entry.c"]
        zig.link_code(Target.parse("arm64").triple, parts, tmp_path / name / "code.so")
    assert (tmp_path / "a" / "code.so").read_bytes() == (tmp_path / "b" / "code.so").read_bytes()


def test_missing_cpu_feature(make_sample, example) -> None:
    x, mask = example(1)
    with pytest.raises(TargetError, match="lacks features that the artifact was compiled for: warp-drive"):
        make_sample(feature="warp-drive").run(x, mask=mask)


def test_cpu_features_agree_with_the_kernels(make_sample, example, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each feature that the system reports is one that the artifact finds, and no other."""
    monkeypatch.setattr(loader, "EMULATED_FEATURES", set())  # what another test of this process may have started
    from graphc.target import ARM_FEATURES, X86_FEATURES, machine_features

    x, mask = example(1)
    for feature in X86_FEATURES if machine_arch() == "x86-64" else ARM_FEATURES:
        artifact = make_sample(feature=feature)
        if feature in machine_features():
            artifact.run(x, mask=mask)
        else:
            with pytest.raises(TargetError, match=f": {feature}$"):
                artifact.run(x, mask=mask)


def test_threads_must_be_positive(make_sample, tmp_path: Path) -> None:
    make_sample().save(tmp_path / "model.graphc")
    with pytest.raises(InputError, match="at least 1, got 0"):
        graphc.load(tmp_path / "model.graphc", threads=0)


def test_code_and_weights_of_different_models(make_sample, example) -> None:
    artifact = make_sample()
    code = bytes(artifact._sections["code"])
    stranger = Artifact.build(Program(code, bytes(128), artifact.plan), "", {}, artifact.manifest)
    x, mask = example(1)
    with pytest.raises(ArtifactError, match="do not belong together"):
        stranger.run(x, mask=mask)


def test_unloading_leaves_no_threads_and_no_descriptors(make_sample, example, expected, tmp_path: Path) -> None:
    make_sample().save(tmp_path / "model.graphc")
    x, mask = example(2)
    gc.collect()  # artifacts of other tests
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        artifact = graphc.load(tmp_path / "model.graphc", threads=3)
        np.testing.assert_array_equal(artifact.run(x, mask=mask)["y"], expected(x, mask)[0])
    assert threading.active_count() == before[0] + 2
    del artifact
    gc.collect()
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before


def test_runs_with_neither_torch_nor_tvm(make_sample, tmp_path: Path) -> None:
    make_sample().save(tmp_path / "model.graphc")
    program = """
import sys
for name in ("torch", "tvm", "sympy", "onnx", "ziglang"):
    sys.modules[name] = None  # an import of it fails
import graphc, numpy
artifact = graphc.load(sys.argv[1], threads=2)
print(artifact.run(numpy.ones((2, 8), "float32"), mask=numpy.ones((2, 8), bool))["y"].shape)
"""
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path / "model.graphc")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(2, 4)\n", "")
