"""What README.md says is so: its Python runs, its commands and files exist."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from graphc import cli

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
README = (ROOT / "README.md").read_text()


def test_python_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.S | re.M)
    assert len(blocks) >= 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert (tmp_path / "model.graphc").exists()


def test_every_verb_is_in_the_table() -> None:
    assert tuple(re.findall(r"^\| `graphc (\w+)", README, re.M)) == cli.VERBS


def test_commands_are_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    """Each option that is named with a verb exists."""
    for row in re.findall(r"^\| (`graphc .*)$", README, re.M):
        verb, options = row.split()[1].strip("`"), re.findall(r"--[\w-]+", row)
        with pytest.raises(SystemExit):
            cli.main([verb, "--help"])
        help_text = capsys.readouterr().out
        assert [option for option in options if option not in help_text] == []


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)]+)\)", text):
        if link.startswith("#"):
            assert link[1:] in [heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", text, re.M)]
        elif not link.startswith("https://"):
            assert (ROOT / link).exists(), link


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_and_scripts_exist(page: str) -> None:
    for block in re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), re.S | re.M):
        for line in block.splitlines():
            command = shlex.split(line, comments=True)
            if command[0] == "make":
                dry = subprocess.run(["make", "--dry-run", *command[1:]], cwd=ROOT, capture_output=True)
                assert dry.returncode == 0, line
            elif "/" in command[0]:
                assert (ROOT / command[0]).stat().st_mode & 0o111, line
