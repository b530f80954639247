"""From kernels and the generated entry.c to a code section."""

from __future__ import annotations

import tempfile
from pathlib import Path

from graphc.runtime.zig import link_code
from graphc.target import Target


def link(kernels: bytes, entry: str, target: Target) -> bytes:
    """The ELF shared object of a program. Raises TargetError where the linker is missing or fails."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        objects, source, code = folder / "kernels.o", folder / "entry.c", folder / "code.so"
        objects.write_bytes(kernels)
        source.write_text(entry)
        link_code(target.triple, [objects, source], code)
        return code.read_bytes()
