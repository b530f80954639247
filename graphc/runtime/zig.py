"""The C compiler and linker for every target: zig, from the PyPI package `ziglang`."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from graphc.errors import TargetError

SOURCES = Path(__file__).parent

_WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Werror")


def link_code(triple: str, parts: Iterable[Path], output: Path) -> None:
    """Link `parts` (a backend's objects and its entry.c) with model.c into a code section: an ELF shared object that
    imports nothing and exports only model.h's functions. The same parts give the same bytes."""
    flags = ("-ffreestanding", "-fno-builtin", "-fvisibility=hidden", "-fPIC", "-shared", "-nostdlib", "-s", "-O2",
             "-fno-unwind-tables")  # fmt: skip
    sources = (*parts, SOURCES / "model.c")
    _zig("cc", "-target", triple, *_WARNINGS, *flags, f"-I{SOURCES}", *map(str, sources), "-o", str(output))


def link_runner(triple: str, output: Path) -> None:
    """Link the static program that runs artifacts under an emulator."""
    sources = (SOURCES / "runner.c", SOURCES / "graphc.c")
    _zig("cc", "-target", triple, *_WARNINGS, "-static", "-s", "-O2", *map(str, sources), "-o", str(output))


def link_library(triple: str, source: Path, output: Path) -> None:
    """Link one file into a shared object of its own, which exports what the file says is visible."""
    flags = ("-shared", "-nostdlib", "-fPIC", "-fvisibility=hidden", "-s", "-O2")
    _zig("cc", "-target", triple, *_WARNINGS, *flags, str(source), "-o", str(output))


def link_plugin(source: Path, output: Path) -> None:
    """Link a plugin of an emulator that runs on this machine, which provides its undefined symbols."""
    triple = f"{platform.machine()}-linux-gnu"
    flags = ("-shared", "-fPIC", "-fvisibility=hidden", "-s", "-O2")
    _zig("cc", "-target", triple, *_WARNINGS, *flags, str(source), "-o", str(output))


@cache
def version() -> str:
    """Version of the installed zig."""
    return _zig("version").strip()


def _zig(*arguments: str) -> str:
    if find_spec("ziglang") is None:
        raise TargetError("linking code needs the zig compiler: pip install ziglang")
    done = subprocess.run([sys.executable, "-m", "ziglang", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise TargetError(f"zig {arguments[0]} failed:\n{done.stderr.strip()}")
    return done.stdout
