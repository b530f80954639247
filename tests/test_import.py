"""`import graphc` is cheap, and an artifact runs where neither torch nor TVM is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import graphc

# Refuses to import what a device does not have.
BLOCK = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "tvm", "tvm_ffi", "onnx", "onnxscript", "sympy", "ziglang"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Absent())
"""


def python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = python("import sys, graphc; print(*{name.partition('.')[0] for name in sys.modules})").split()
    assert "graphc" in loaded
    assert not {"torch", "tvm", "tvm_ffi", "onnx", "onnxscript", "numpy", "sympy", "rich"} & set(loaded)


def test_public_names_load_neither_tvm_nor_onnx() -> None:
    names = "; ".join(f"graphc.{name}" for name in graphc.__all__)
    loaded = python(f"import sys, torch, graphc; {names}; print(*sys.modules)").split()
    assert "graphc.compiler" in loaded
    assert not {"tvm", "tvm_ffi", "onnx", "onnxscript"} & set(loaded)


def test_import_and_all_public_names_take_at_most_a_second_beyond_torch() -> None:
    names = "; ".join(f"graphc.{name}" for name in graphc.__all__)
    code = (
        f"import time, torch; start = time.process_time(); import graphc; {names}; print(time.process_time() - start)"
    )
    assert float(python(code)) < 1  # seconds of this process alone: a busy machine does not count


def test_an_artifact_runs_without_torch_and_tvm(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU())
    x = torch.randn(2, 4)
    graphc.compile(model, example_inputs=(x,)).save(tmp_path / "model.graphc")
    np.save(tmp_path / "x.npy", x.numpy())
    code = BLOCK + (
        "import graphc, numpy\n"
        "artifact = graphc.load(sys.argv[1] + '/model.graphc')\n"
        "numpy.save(sys.argv[1] + '/y.npy', artifact.run(numpy.load(sys.argv[1] + '/x.npy')))\n"
        "assert artifact.size and artifact.report().rows and artifact.graph_text\n"
    )
    python(code, str(tmp_path))
    with torch.no_grad():
        np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model(x).numpy(), rtol=1e-5, atol=1e-6)


def test_the_command_runs_an_artifact_without_torch_and_tvm(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 3)
    graphc.compile(model, example_inputs=(torch.zeros(2, 4),)).save(tmp_path / "model.graphc")
    code = BLOCK + "from graphc.cli import main\nraise SystemExit(main(sys.argv[1:]))\n"
    path = str(tmp_path / "model.graphc")
    assert "linear" in python(code, "show", path, "--ir")
    assert "outputs" in python(code, "run", path, "--random", "--json")
    assert "totals" in python(code, "report", path)
