"""Executed instructions of arm64 code, counted under emulation: the same every run, whatever else the machine does.

A plugin of qemu (counter.c) counts; the program under count marks where by making a system call.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphc.artifact import Artifact
from graphc.errors import TargetError
from graphc.runtime import zig

CLOCK_GETTIME = 113  # what the runner calls before and after each step
GETPPID = 173  # a call without effect, for programs that have nothing else to mark with

_SOURCE = Path(__file__).parent / "counter.c"


@dataclass(frozen=True)
class Count:
    """Instructions executed in an interval. `classes`: how many are multiply_accumulate, vector (other), load, store,
    branch, scalar; they sum up to `instructions`. `hottest`: the same for one pass through the block of straight code
    (in an inner loop: its body) that executed most, `executions` times."""

    instructions: int
    classes: dict[str, int]
    executions: int
    hottest: dict[str, int]

    @staticmethod
    def from_json(line: dict[str, Any]) -> Count:
        classes = dict(line["total"])
        return Count(classes.pop("instructions"), classes, line.get("executions", 0), line.get("hottest", {}))


class Counter:
    """What `counting` gives: `intervals()` after the program has ended, or while it waits."""

    def __init__(self, output: Path) -> None:
        self._output = output

    def intervals(self) -> list[Count]:
        """One count for each marking call, of what was executed since the one before; the last to the end."""
        return [Count.from_json(json.loads(line)) for line in self._output.read_text().splitlines()]


@contextmanager
def counting(marker: int = GETPPID) -> Iterator[Counter]:
    """Every qemu-aarch64 that is started inside counts, in intervals between system calls `marker`. One at a time.

    Raises TargetError where the plugin cannot be built.
    """
    plugin = build_plugin()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "counts"
        before = os.environ.get("QEMU_PLUGIN")
        os.environ["QEMU_PLUGIN"] = f"file={plugin},out={output},marker={marker}"
        try:
            yield Counter(output)
        finally:
            if before is None:
                del os.environ["QEMU_PLUGIN"]
            else:
                os.environ["QEMU_PLUGIN"] = before


def count_steps(artifact: Artifact, *inputs: Any, runs: int = 1, **kwargs: Any) -> list[list[Count]]:
    """The instructions of each step of an inference on one thread, for each of `runs` runs.

    Raises TargetError where the artifact is not for arm64 or nothing emulates it here.
    """
    if artifact.target.arch != "arm64":
        raise TargetError(f"instructions are counted in emulated arm64 code, and this is for {artifact.target.name}")
    num_steps = len(artifact.plan["steps"]) - artifact.plan["init_steps"]
    with counting(CLOCK_GETTIME) as counter:
        fresh = Artifact(artifact.data, threads=1)
        for _ in range(runs):
            fresh.run(*inputs, **kwargs)
        intervals = counter.intervals()
    # A call before each step and one after it: every second interval is a step.
    steps = intervals[1 : 2 * num_steps * runs : 2]
    return [steps[run * num_steps : (run + 1) * num_steps] for run in range(runs)]


def build_plugin() -> Path:
    """The plugin for this machine, built on first use into the user's cache directory."""
    digest = hashlib.sha256(zig.version().encode() + _SOURCE.read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphc"
    plugin = cache / f"counter-{digest}.so"
    if not plugin.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as beside:
            built = Path(beside) / "counter.so"
            zig.link_plugin(_SOURCE, built)
            built.replace(plugin)
    return plugin
