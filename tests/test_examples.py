"""Every example runs and prints what its golden file in tests/examples says."""

import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from graphc.target import machine_arch

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("[0-9][0-9]_*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_output(path: Path, golden: Callable[[Path, str], None], capsys: pytest.CaptureFixture[str]) -> None:
    if "qemu" in path.read_text() and machine_arch() != "arm64" and shutil.which("qemu-aarch64") is None:
        pytest.skip("needs qemu-aarch64 (Debian, Ubuntu: apt install qemu-user)")
    runpy.run_path(str(path), run_name="__main__")
    # The digest of a weight that was computed may differ in its last bit from one CPU to the next.
    printed = re.sub(r"#[0-9a-f]{16}\b", "#" + 16 * "0", capsys.readouterr().out)
    golden(Path(__file__).parent / "examples" / f"{path.stem}.txt", printed)


def test_numbered_and_short() -> None:
    assert [path.name[:2] for path in EXAMPLES] == [f"{number:02d}" for number in range(1, len(EXAMPLES) + 1)]
    assert {path.name: lines for path in EXAMPLES if (lines := len(path.read_text().splitlines())) >= 60} == {}
