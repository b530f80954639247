"""Tuned template parameters by device and workload.

graphc ships a database; the user's own (`$GRAPHC_TUNING`, else `~/.config/graphc/tuning.json`) is merged over it, entry
by entry. A device is an architecture with the instruction sets that code may use, never a CPU's name.

    {"x86-64 avx2 fma ...": {"matrix product: aten.linear.default(...)":
        {"parameters": {"rows": 8}, "searched": ["rows"], "nanoseconds": 5100.0, "default_nanoseconds": 5700.0}}}
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from graphc import container
from graphc.errors import TuningError
from graphc.target import Target

SHIPPED = Path(__file__).with_name("tuned.json")


@dataclass(frozen=True)
class Tuned:
    """The best parameters of a workload; those that were searched; nanoseconds with them, and with the defaults."""

    parameters: Mapping[str, int]
    searched: tuple[str, ...]
    nanoseconds: float
    default_nanoseconds: float


class Database:
    """{device: {workload: Tuned}}.

    >>> Database.load().parameters(Target.parse("host"))
    """

    def __init__(self, entries: Mapping[str, Mapping[str, Tuned]] | None = None) -> None:
        self.entries = {device: dict(found) for device, found in (entries or {}).items()}

    @staticmethod
    def load(*paths: str | os.PathLike[str]) -> Database:
        """What the files hold, later ones first; without paths, what ships with graphc and the user's own.

        A file that does not exist holds nothing. Raises TuningError for one that cannot be read.
        """
        database = Database()
        for path in map(Path, paths or (SHIPPED, user_path())):
            if path.exists():
                database.merge(_read(path))
        return database

    def merge(self, other: Database) -> None:
        """Take over all entries of the other."""
        for device, found in other.entries.items():
            self.entries.setdefault(device, {}).update(found)

    def parameters(self, target: Target) -> dict[str, Mapping[str, int]]:
        """Template parameters by workload: what a backend's `lower` takes."""
        return {workload: entry.parameters for workload, entry in self.of(target).items()}

    def of(self, target: Target) -> dict[str, Tuned]:
        """The entries of a target's device, to read and to change."""
        return self.entries.setdefault(device(target), {})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file: the same entries, the same bytes."""
        content = {
            name: {workload: asdict(entry) for workload, entry in sorted(found.items())}
            for name, found in sorted(self.entries.items())
            if found
        }
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        container.write(path, (json.dumps(content, indent=1) + "\n").encode())


def device(target: Target) -> str:
    """What tuned parameters are good for: "x86-64 avx2 fma ..."."""
    return " ".join([target.arch, *target.features])


def user_path() -> Path:
    """Where the user's own entries are."""
    if given := os.environ.get("GRAPHC_TUNING"):
        return Path(given)
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "graphc" / "tuning.json"


def _read(path: Path) -> Database:
    try:
        content = json.loads(path.read_text())
        return Database(
            {name: {workload: _entry(**entry) for workload, entry in found.items()} for name, found in content.items()}
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise TuningError(
            f"cannot read the tuning database '{path}': {error}. Delete it, or name another one in GRAPHC_TUNING."
        ) from None


def _entry(parameters: dict[str, int], searched: list[str], nanoseconds: float, default_nanoseconds: float) -> Tuned:
    if not all(isinstance(value, int) for value in parameters.values()):
        raise ValueError(f"parameters are integers, got {parameters}")
    return Tuned(dict(parameters), tuple(searched), float(nanoseconds), float(default_nanoseconds))
