"""The tree is packaged whole, pinned, and tidy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = {"graphc": "graphc", "passes": "graphc.passes", "backends": "graphc.backends", "tools": "graphc.tools"}

# Longer than a file should be, each for a reason.
LONG = {
    "graphc/runtime/graphc.c": "the C runtime is one file that a C program adds to its build",
}


def tracked() -> list[str]:
    """Files of the tree as git knows them, new ones that are not ignored included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


def packages() -> set[str]:
    found = set()
    for room, package in ROOMS.items():
        for folder, folders, files in os.walk(ROOT / room):  # symlinks are not followed
            folders[:] = [name for name in folders if name != "__pycache__"]
            if "__init__.py" in files:
                found.add(".".join([package, *Path(folder).relative_to(ROOT / room).parts]))
    return found


def test_every_package_is_listed() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert listed == sorted(packages())


def test_rooms_are_linked_into_the_package() -> None:
    for room in ("passes", "backends", "tools"):
        assert os.readlink(ROOT / "graphc" / room) == f"../{room}"
        assert PROJECT["tool"]["setuptools"]["package-dir"][f"graphc.{room}"] == room


@pytest.mark.parametrize("room", ["passes", "backends", "tools"])
def test_rooms_have_one_name(room: str) -> None:
    done = subprocess.run([sys.executable, "-c", f"import {room}"], cwd=ROOT, capture_output=True, text=True)
    assert f"import graphc.{room}, not {room}" in done.stderr


def test_the_wheel_holds_every_source(tmp_path: Path) -> None:
    # setuptools builds in the tree: build from a copy.
    copy = tmp_path / "tree"
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(copy)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    sources = {name for name in tracked() if name.partition("/")[0] in ROOMS}
    expected = {name if name.startswith("graphc/") else f"graphc/{name}" for name in sources}
    assert expected - packed == set()
    assert {"graphc/runtime/graphc.h", "graphc/py.typed"} <= packed
    assert not [name for name in packed if name.startswith("tests/")]


def test_constraints_pin_what_the_project_asks_for() -> None:
    lines = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    pins = dict(line.split("==") for line in lines)
    assert list(pins) == sorted(pins)
    extras = PROJECT["project"]["optional-dependencies"].values()
    wanted = [Requirement(text) for texts in (PROJECT["project"]["dependencies"], *extras) for text in texts]
    for requirement in wanted:
        assert requirement.specifier.contains(pins[requirement.name]), requirement
    assert (pins["torch"], pins["apache-tvm"], pins["apache-tvm-ffi"]) == ("2.13.0", "0.27.0.post1", "0.1.14.post0")


def test_every_pip_call_is_constrained() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.findall(r"^.*pip install.*$", makefile, re.M) == [
        "PIP := $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt"
    ]


def test_files_have_one_idea() -> None:
    sizes = {
        name: len((ROOT / name).read_text().splitlines()) for name in tracked() if name.endswith((".py", ".c", ".h"))
    }
    assert {name: size for name, size in sizes.items() if size > 400 and name not in LONG} == {}
    assert {name for name in LONG if sizes.get(name, 0) <= 400} == set()


def test_names_say_something() -> None:
    nothing = re.compile(r"(^|/)(utils?|helpers?|common|misc|manager|base)\.(py|c|h)$")
    assert [name for name in tracked() if nothing.search(name)] == []


def test_nothing_of_one_machine_is_in_the_tree() -> None:
    forbidden = re.compile(r"(?<![\w.-])/(work|root|home|tmp)/|--(extra-)?index-url|^\s*index-url", re.M)
    found = {}
    for name in tracked():
        content = (ROOT / name).read_bytes()
        if b"\0" not in content and name != "tests/test_packaging.py":
            match = forbidden.search(content.decode())
            if match:
                found[name] = match.group()
    assert found == {}
