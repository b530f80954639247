"""The `graphc` command, in this process: what it prints, what it writes, and its exit status."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import graphc
from graphc import cli, pipeline
from graphc.cli import doctor, targets
from graphc.errors import GraphcError
from graphc.target import machine_arch

MODEL = """
import torch

def build():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))

def pair():
    return build(), torch.zeros(2, 4)

def exported():
    batch = torch.export.Dim("batch", min=1, max=8)
    return torch.export.export(build().eval(), (torch.zeros(2, 4),), dynamic_shapes=({0: batch},))

class Two(torch.nn.Module):
    def forward(self, left, right):
        return {"sum": left + right, "product": left * right}

ready = build()

def broken():
    raise RuntimeError("no such weights")
"""

Graphc = Callable[..., "Result"]


class Result:
    """What one command line gave."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Graphc:
    """run("verb", ...) in a folder with models.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["", *sys.path])
    (tmp_path / "models.py").write_text(MODEL)

    def call(*arguments: str) -> Result:
        capsys.readouterr()
        try:
            status = cli.main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
        printed = capsys.readouterr()
        return Result(status, printed.out, printed.err)

    return call


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled model with a dynamic batch."""
    torch.manual_seed(0)
    layers = (torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    batch = torch.export.Dim("batch", min=1, max=8)
    compiled = graphc.compile(
        torch.nn.Sequential(*layers), example_inputs=(torch.zeros(2, 4),), dynamic_shapes=({0: batch},), name="tiny"
    )
    path = tmp_path_factory.mktemp("artifact") / "tiny.graphc"
    compiled.save(path)
    return path


# -- usage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_an_example(run: Graphc, verb: str) -> None:
    result = run(verb, "--help")
    assert result.status == 0
    assert f"\n  graphc {verb}" in result.out and "--json" in result.out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("explain",),
        ("show",),
        ("show", "x.graphc", "--colour"),
        ("show", "x.graphc", "--pl"),  # no abbreviations: a new option must not change an old command line
        ("show", "x.txt", "--ir", "--plan"),
        ("run", "x.graphc"),
        ("run", "x.graphc", "--random", "--repeat", "0"),
        ("compile", "models.py:build"),
        ("compile", "models.py:build", "-o", "x.graphc", "--seed", "often"),
        ("passes", "quantize", "--reproduce", "crash"),
    ],
)
def test_wrong_usage_is_2(run: Graphc, arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.status == 2
    assert "error:" in result.err and result.out == ""


def test_a_foreseen_error_is_1_without_a_traceback(run: Graphc) -> None:
    result = run("show", "absent.graphc")
    assert result.status == 1
    assert "absent.graphc" in result.err and "Traceback" not in result.err


def test_verbose_shows_the_traceback(run: Graphc) -> None:
    result = run("show", "absent.graphc", "-v")
    assert result.status == 1 and "Traceback" in result.err


def test_a_defect_is_3_and_says_how_to_report_it(run: Graphc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphc, "load", lambda path: 1 / 0)
    result = run("report", "x.graphc")
    assert result.status == 3
    assert "ZeroDivisionError" in result.err and "graphc doctor" in result.err and "Traceback" not in result.err


# -- compile ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "options"),
    [("models.py:build", ("--shape", "2,4")), ("models:ready", ("--shape", "2,4:f32")), ("models.py:pair", ())],
)
def test_compile_a_function(run: Graphc, model: str, options: tuple[str, ...]) -> None:
    result = run("compile", model, "-o", "x.graphc", *options, "--json")
    assert result.status == 0, result.err
    assert result.json["bytes of file"] == Path("x.graphc").stat().st_size
    expected = graphc.load("x.graphc").run(np.ones((2, 4), np.float32))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    with torch.no_grad():
        np.testing.assert_allclose(expected, model(torch.ones(2, 4)).numpy(), rtol=1e-5, atol=1e-6)


def test_compile_an_exported_program_keeps_its_dynamic_sizes(run: Graphc) -> None:
    assert run("compile", "models.py:exported", "-o", "x.graphc").status == 0
    assert graphc.load("x.graphc").run(np.ones((7, 4), np.float32)).shape == (7, 3)


def test_compile_an_onnx_file(run: Graphc) -> None:
    value = partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT, shape=(2, 3))
    relu = onnx.helper.make_node("Relu", ["x"], ["y"])
    graph = onnx.helper.make_graph([relu], "small", [value("x")], [value("y")])
    opset = onnx.helper.make_opsetid("", 18)
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), "small.onnx")
    assert run("compile", "small.onnx", "-o", "x.graphc").out.startswith("output")
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(graphc.load("x.graphc").run(x), np.maximum(x, 0))


def test_compile_looks_at_the_output_first(run: Graphc) -> None:
    result = run("compile", "models.py:broken", "-o", "absent/x.graphc")
    assert result.status == 1 and "absent" in result.err and "no such weights" not in result.err


def test_compile_int8_by_name_with_dumps(run: Graphc) -> None:
    arrays = {"right": np.full((8, 3), 2, np.float32), "left": np.ones((8, 3), np.float32)}
    np.savez("calibration.npz", **arrays)
    options = ("--shape", "1,3", "--shape", "1,3", "--dump-ir", "dumps", "--drift", "-v")
    result = run("compile", "models.py:Two", "-o", "x.graphc", "--calibration", "calibration.npz", *options)
    assert result.status == 0, result.err
    assert "quantize" in result.err  # -v: the time of each pass
    assert len(list(Path("dumps").glob("[0-9]*.txt"))) > 5
    result = run("run", "x.graphc", "--input", "left=left.npy", "--input", "right=right.npy", "--json")
    assert result.status == 1 and "left.npy" in result.err
    np.save("left.npy", arrays["left"][:1])
    np.save("right.npy", arrays["right"][:1])
    found = run("run", "x.graphc", "--input", "right=right.npy", "--input", "left=left.npy", "--json").json["outputs"]
    values = [np.asarray(value).ravel() for value in found.values()]
    assert sorted(float(value[0]) for value in values) == pytest.approx([2, 3], abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("model.pt2",), "unpickle"),
        (("model.bin",), "FILE.onnx"),
        (("models.py:absent", "--shape", "2,4"), "absent"),
        (("absent.py:build",), "absent.py"),
        (("models.py:broken",), "no such weights"),
        (("models.py:build",), "example"),
        (("models.py:build", "--shape", "2,x"), "2,x"),
        (("models.py:build", "--shape", "2,4:f31"), "f31"),
        (("models.py:build", "--shape", "2,4", "--target", "z80"), "z80"),
        (("models.py:build", "--shape", "2,4", "--pipeline", "fold_constant"), "fold_constants"),
        (("models.py:build", "--shape", "2,4", "--budget-size", "10 B"), "10"),
        (("models.py:build", "--shape", "2,4", "--calibration", "models.py"), "models.py"),
        (("absent.onnx",), "absent.onnx"),
    ],
)
def test_compile_says_what_is_wrong_and_writes_nothing(
    run: Graphc, arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    result = run("compile", *arguments, "-o", "x.graphc")
    assert result.status == 1, result.err
    assert message in result.err and "Traceback" not in result.err
    assert not [path for path in tmp_path.iterdir() if "graphc" in path.name]


# -- configuration ---------------------------------------------------------------------------------


def test_a_written_configuration_gives_the_same_bytes(run: Graphc) -> None:
    np.savez("calibration.npz", x=np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32))
    options = ("--shape", "1,4", "--target", "x86-64", "--calibration", "calibration.npz", "--seed", "7")
    assert run("compile", "models.py:build", "-o", "one.graphc", *options, "--write-config", "run.json").status == 0
    written = json.loads(Path("run.json").read_text())
    assert written["pipeline"] == str(pipeline.pipeline("int8")) and written["seed"] == 7
    assert run("compile", "--config", "run.json", "-o", "two.graphc").status == 0
    assert Path("one.graphc").read_bytes() == Path("two.graphc").read_bytes()


def test_the_command_line_wins_over_a_toml_file(run: Graphc) -> None:
    Path("run.toml").write_text('model = "models.py:build"\noutput = "x.graphc"\nshape = ["1,4"]\ntarget = "arm64"\n')
    options = ("--config", "run.toml", "--target", "x86-64", "--shape", "5,4", "--write-config", "run.json")
    assert run("compile", *options, "--json").json["target"] == "x86-64"
    assert json.loads(Path("run.json").read_text())["shape"] == ["5,4"]
    assert graphc.load("x.graphc").run(np.ones((5, 4), np.float32)).shape == (5, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"tarket": "host"}', "tarket"),
        ('{"seed": "often"}', "often"),
        ('{"seed": {"a": 1}}', "seed"),
        ('{"target": ["host", "arm64"]}', "target"),
        ('{"drift": "no"}', "drift"),
        ("[1]", "table"),
        ("{", "run.json"),
    ],
)
def test_a_wrong_configuration_is_wrong_usage(run: Graphc, content: str, message: str) -> None:
    Path("run.json").write_text(content)
    result = run("compile", "models.py:build", "-o", "x.graphc", "--config", "run.json")
    assert result.status == 2 and message in result.err


# -- show, run, report -----------------------------------------------------------------------------


def test_show_an_artifact(run: Graphc, artifact: Path) -> None:
    facts = run("show", str(artifact), "--json").json
    assert facts["name"] == "tiny" and facts["sizes"] == ["batch in [1, 8]"]
    assert "tiny" in run("show", str(artifact)).out
    assert run("show", str(artifact), "--ir").out.startswith("graph tiny(")
    assert run("show", str(artifact), "--plan", "--json").json["steps"]
    assert run("show", str(artifact), "--plan").out.startswith("STEP")


def test_run_with_random_inputs(run: Graphc, artifact: Path) -> None:
    result = run("run", str(artifact), "--random", "--repeat", "3", "--profile", "--threads", "1", "--json").json
    assert np.shape(next(iter(result["outputs"].values()))) == (2, 3)
    assert set(result["milliseconds"]) == {"median", "least", "most"} and result["steps"]
    assert "KERNEL" in run("run", str(artifact), "--random", "--profile").out


def test_run_saves_what_the_artifact_gives(run: Graphc, artifact: Path) -> None:
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.save("x.npy", x)
    assert run("run", str(artifact), "--input", "x.npy", "--output", "y.npz").out == ""
    (value,) = np.load("y.npz").values()
    np.testing.assert_array_equal(value, graphc.load(artifact).run(x))


def test_run_unpickles_nothing(run: Graphc, artifact: Path) -> None:
    np.save("x.npy", np.array([object()]), allow_pickle=True)
    result = run("run", str(artifact), "--input", "x.npy")
    assert result.status == 1 and "x.npy" in result.err


def test_run_counts_its_inputs(run: Graphc, artifact: Path) -> None:
    np.save("x.npy", np.zeros((2, 4), np.float32))
    result = run("run", str(artifact), "--input", "x.npy", "--input", "x.npy")
    assert result.status == 1 and "1 inputs" in result.err


def test_report(run: Graphc, artifact: Path) -> None:
    assert "totals" in run("report", str(artifact)).out
    assert run("report", str(artifact), "--json").json["rows"]
    assert run("report", str(artifact), "--html", "report.html").out == ""
    assert Path("report.html").read_text().startswith("<!doctype html>")


# -- passes, targets, doctor -----------------------------------------------------------------------


def test_passes_are_listed_and_explained(run: Graphc) -> None:
    listed = run("passes", "--json").json
    assert [entry["name"] for entry in listed["passes"]] == pipeline.pass_names()
    assert all(entry["summary"].endswith((".", ":")) for entry in listed["passes"])
    assert "before:" in run("passes", "drop_unused").out
    assert "drop_unused" in run("passes").out
    assert run("passes", "drop_unusd").status == 1


def test_passes_run_on_a_dump(run: Graphc) -> None:
    assert run("compile", "models.py:pair", "-o", "x.graphc", "--dump-ir", "dumps").status == 0
    assert run("show", "dumps/00_input.txt", "--json").json["operators"]
    assert run("show", "dumps/00_input.txt", "--plan").status == 1
    first, second = sorted(Path("dumps").glob("0[01]*.txt"))
    assert run("passes", "--run", "canonicalize", str(first), "-o", "out/canonical.txt").out == ""
    assert Path("out/canonical.txt").read_text() == second.read_text()
    assert run("passes", "--run", "canonicalize", str(first)).out == second.read_text()


def test_passes_reproduce_a_crash(run: Graphc, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphc.passes.fold_constants import FoldConstants

    with monkeypatch.context() as patch:
        patch.setattr(FoldConstants, "run", lambda self, graph, ctx: 1 / 0)
        result = run("compile", "models.py:pair", "-o", "x.graphc", "--dump-ir", "dumps")
        assert result.status == 1 and "graphc passes --reproduce dumps/crash" in result.err
        result = run("passes", "--reproduce", "dumps/crash")
        assert result.status == 1 and "fold_constants" in result.err
    assert run("passes", "--reproduce", "dumps/crash").out.startswith("graph ")


def test_targets(run: Graphc) -> None:
    rows = {row["name"]: row["runs"] for row in run("targets", "--json").json}
    assert rows["host"] == "natively" and "arm64:cortex-a53" in rows
    assert run("targets").out.startswith("TARGET")


def test_targets_that_this_machine_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "machine_arch", lambda: "x86-64")
    monkeypatch.setattr(targets, "machine_features", lambda: ("sse3",))
    assert targets.runs_here("x86-64:v2") == "no: the CPU lacks ssse3 sse4.1 sse4.2 popcnt"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert targets.runs_here("arm64") == "no: needs qemu-user"


def test_doctor_finds_this_machine_in_order(run: Graphc) -> None:
    if machine_arch() != "arm64" and shutil.which("qemu-aarch64") is None:
        pytest.skip("needs qemu-aarch64 (Debian, Ubuntu: apt install qemu-user)")
    result = run("doctor", "--json")
    assert result.status == 0
    assert {check["status"] for check in result.json} == {"ok"}
    assert sum(check["name"].startswith("compile and run") for check in result.json) == 2


def test_doctor_names_the_package_to_install(run: Graphc, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: ["apache-tvm==0.1", "no-such-package>=2", 'x; extra == "y"'])
    result = run("doctor")
    assert result.status == 1
    assert "pip install 'apache-tvm==0.1'" in result.out and "pip install 'no-such-package>=2'" in result.out
    assert "compile and run" not in result.out


def test_doctor_compares_with_torch(run: Graphc, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = SimpleNamespace(run=lambda x: np.zeros((1, 10), np.float32))
    monkeypatch.setattr(graphc, "compile", lambda *arguments, **options: wrong)
    result = run("doctor")
    assert result.status == 1 and "largest difference" in result.out


def test_doctor_repeats_what_a_compilation_says(run: Graphc, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> Any:
        raise GraphcError("no kernel")

    monkeypatch.setattr(graphc, "compile", fail)
    result = run("doctor")
    assert result.status == 1 and "no kernel" in result.out
