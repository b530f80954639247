"""Each `<pass>.<case>.txt` beside this file, and each pass's own docstring: before in, after out."""

from __future__ import annotations

import importlib
import inspect
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import graphc.passes
from graphc.pipeline import pass_names

FILES = sorted(Path(__file__).parent.glob("*.txt"))
OWN = [name for name in pass_names() if (Path(graphc.passes.__path__[0]) / f"{name}.py").exists()]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_golden(
    file: Path, read_case: Any, golden: Callable[[Path, str], None], relative_error: Any, promised: Any
) -> None:
    text = file.read_text()
    before, after = read_case.read(text).run(relative_error, promised)
    golden(file, f"{text.partition('before:')[0]}before:\n{before}after:\n{after}")


@pytest.mark.parametrize("file", [file for file in FILES if ".not_" in file.name], ids=lambda file: file.stem)
def test_guard(file: Path) -> None:
    assert file.read_text().endswith("after:\nunchanged\n")


@pytest.mark.parametrize("name", OWN)
def test_docstring(name: str, read_case: Any, relative_error: Any, promised: Any) -> None:
    text = inspect.getdoc(importlib.import_module(f"graphc.passes.{name}")) or ""
    above, before, example = text.partition("before:\n")
    assert before, "the module's docstring has no 'before:'"
    options = above.rpartition("\n\n")[2]  # options and numbers as in a golden, for a pass that does little by default
    spec = options if f"{name}{{" in options.partition("\n")[0] else f"{name}\n"
    # Scales of quantization in the examples: any positive numbers.
    case = read_case.read(f"{spec}weight s = constant(0.02)\nweight ws = constant(0.01)\nweight wz = constant(0)\n"
                          f"weight z = constant(0)\nweight v = uniform(0.1, 2)\nbefore:\n{example}")  # fmt: skip
    assert case.run(relative_error, promised) == (case.before, case.after.strip() + "\n")


@pytest.mark.parametrize("name", OWN)
def test_every_pass_has_goldens_and_a_case_where_it_must_not_fire(name: str) -> None:
    found = Counter(
        file.read_text().endswith("after:\nunchanged\n") for file in FILES if file.name.startswith(f"{name}.")
    )
    assert found[False] >= 2
    assert found[True] >= 1


def test_goldens_belong_to_passes() -> None:
    assert {file.name.partition(".")[0] for file in FILES} == set(OWN)
