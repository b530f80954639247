"""One interleaved run: a workload on so many threads, by every engine in every precision."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file

import graphc
from graphc.target import Target
from graphc.tools.bench.engines import EAGER, Engine
from graphc.tools.bench.peaks import Peaks
from graphc.tools.bench.process import EngineError, Process

Say = Callable[[str], None]

# Seconds that a request may take.
PREPARE, LOAD, ANSWER = 900, 600, 120

# The least cosine between an engine's outputs and the reference that counts as right. Weights of few bits are compared
# with what PyTorch computes with the same weights, where the engine says which these are; else an int4 format's loss
# on random weights has to be let through.
BOUNDS = {"fp32": 0.999, "bf16": 0.99, "int8": 0.95}
_OF_OWN_WEIGHTS, _OF_FEW_BITS = 0.98, 0.85


@dataclass(frozen=True)
class Group:
    """What is compared with each other. `workload` is "module:name", see worker.py."""

    workload: str
    batch: int
    threads: int

    @property
    def name(self) -> str:
        return self.workload.partition(":")[2]


@dataclass
class Entry:
    """One engine in one precision. `status`: "ok", "wrong" (the outputs), "absent" (not installed) or "failed"."""

    engine: Engine
    precision: str
    status: str = "ok"
    reason: str = ""
    process: Process | None = None
    rounds: list[list[float]] = field(default_factory=list)
    readable: list[float] = field(default_factory=list)
    checks: dict[str, float | None] = field(default_factory=dict)

    def fail(self, error: EngineError) -> None:
        self.status, self.reason, self.process = "absent" if error.missing else "failed", str(error), None

    def to_json(self) -> dict[str, Any]:
        """Times in seconds: `seconds` is the least of the rounds' medians, `spread` the tenth and ninetieth percentile
        of all runs. `readable`: bytes a second that the machine could read beside each round."""
        found: dict[str, Any] = {"engine": self.engine.name, "precision": self.precision, "status": self.status}
        if self.reason:
            found["reason"] = self.reason
        if self.rounds:
            medians = [statistics.median(times) for times in self.rounds]
            runs = sorted(time for times in self.rounds for time in times)
            found |= {
                "seconds": min(medians),
                "median": statistics.median(runs),
                "spread": [runs[len(runs) // 10], runs[-1 - len(runs) // 10]],
                "rounds": medians,
                "runs": len(runs),
                "readable": self.readable,
            }
        return found | self.checks


def measure(
    group: Group,
    kind: str,
    engines: Iterable[Engine],
    folder: Path,
    rounds: int,
    log: IO[str],
    say: Say,
    score: int = 50,
) -> list[dict[str, Any]]:
    """Run the engines in turns; returns their entries. `folder` keeps what was prepared for another run, `log` takes
    what the engines print, `score` is how many items of real data the workload's metric is taken on."""
    cpus = set(sorted(os.sched_getaffinity(0))[-group.threads :])
    entries = [
        Entry(engine, precision) for engine in (EAGER, *engines) for precision in engine.precisions.get(kind, ())
    ]
    entries = list({(entry.engine.name, entry.precision): entry for entry in entries}.values())
    try:
        for entry in entries:
            _start(entry, group, folder, cpus, log, say)
        _check(entries, folder, say, score)
        say("measuring what the machine can read")
        read = Peaks(Target.parse("host"), group.threads).read
        _take_turns([entry for entry in entries if entry.process is not None], rounds, say, read)
    finally:
        for entry in entries:
            if entry.process is not None:
                entry.process.end()
    return [entry.to_json() for entry in entries]


def prepare(group: Group, kind: str, engines: Iterable[Engine], folder: Path, log: IO[str], say: Say) -> None:
    """Only do what is slow and kept in the folder: convert, calibrate, compile."""
    for engine in (EAGER, *engines):
        for precision in engine.precisions.get(kind, ()):
            entry = Entry(engine, precision)
            _start(entry, group, folder, os.sched_getaffinity(0), log, say)
            if entry.process is not None:
                entry.process.end()
            if entry.reason:
                say(f"{engine.name} {precision}: {entry.reason}")


def _start(entry: Entry, group: Group, folder: Path, cpus: set[int], log: IO[str], say: Say) -> None:
    """Prepare what is not prepared yet, in a process of its own, and load."""
    name = f"{group.name}-{group.batch}-{entry.engine.module.rpartition('.')[2]}-{entry.precision}"
    own = folder / name
    case = {
        "module": entry.engine.module, "workload": group.workload, "batch": group.batch, "precision": entry.precision,
        "threads": group.threads, "folder": str(own),
    }  # fmt: skip
    stamp, now = own / "prepared", package_version(entry.engine.package) or "none"
    try:
        if not stamp.exists() or stamp.read_text() != now:
            own.mkdir(parents=True, exist_ok=True)
            say(f"{name}: preparing")
            process = Process(os.sched_getaffinity(0), log)
            try:
                process.ask("prepare", PREPARE, case=case)
            finally:
                process.end()
            stamp.write_text(now)
        say(f"{name}: loading")
        entry.process = Process(cpus, log)
        entry.process.ask("load", LOAD, case=case)
    except EngineError as error:
        entry.fail(error)


def _check(entries: Sequence[Entry], folder: Path, say: Say, score: int) -> None:
    """Compare outputs with the first entry's, and take the metric on real data."""
    path = folder / "outputs.safetensors"
    expected: list[torch.Tensor] = []
    for entry in entries:
        if entry.process is not None:
            say(f"{entry.engine.name} {entry.precision}: checking")
            try:
                outputs = _compare(entry, entry.process, expected, path)
                expected = expected or outputs
                if score:
                    entry.checks["score"] = entry.process.ask("score", ANSWER, limit=score)["score"]
            except EngineError as error:
                entry.fail(error)
        if entries[0].process is None:
            raise EngineError(f"torch itself does not run this network: {entries[0].reason}")
    path.unlink(missing_ok=True)


def _compare(entry: Entry, process: Process, expected: Sequence[torch.Tensor], path: Path) -> list[torch.Tensor]:
    own = process.ask("outputs", ANSWER, path=str(path))["reference"]
    found = load_file(path)
    outputs = [found[f"output{index}"] for index in range(len(found)) if f"output{index}" in found]
    expected = expected or outputs
    entry.checks = {"cosine": _cosine(outputs, expected), "error": _error(outputs, expected)}
    judged = [(entry.checks["cosine"], BOUNDS.get(entry.precision, 0.0 if own else _OF_FEW_BITS))]
    if own:
        theirs = [found[f"reference{index}"] for index in range(len(outputs)) if f"reference{index}" in found]
        entry.checks["cosine of own weights"] = _cosine(outputs, theirs)
        judged.append((entry.checks["cosine of own weights"], _OF_OWN_WEIGHTS))
    for cosine, bound in judged:
        if cosine is None or cosine < bound:
            entry.status, entry.reason = "wrong", f"outputs differ: cosine {cosine}, at least {bound} is right"
    return outputs


def _cosine(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float | None:
    """The least over the outputs that both have (llama.cpp keeps its keys and values); None where it is no number."""
    pairs = [(a.double().flatten(), b.double().flatten()) for a, b in zip(found, expected, strict=False)]
    if any(a.shape != b.shape for a, b in pairs):
        return None
    least = min(float(torch.nn.functional.cosine_similarity(a, b, dim=0)) for a, b in pairs)
    return least if math.isfinite(least) else None


def _error(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float | None:
    """The largest difference over the largest expected magnitude."""
    if any(a.shape != b.shape for a, b in zip(found, expected, strict=False)):
        return None
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=False))
    return worst if math.isfinite(worst) else None


def _take_turns(entries: Sequence[Entry], rounds: int, say: Say, read: Callable[[], float], turn: float = 0.1) -> None:
    """Every engine `turn` seconds a round, after untimed runs: the other engines had the caches in between. What the
    machine can read is measured before and after each turn, and the higher of both is kept."""
    counts: dict[int, tuple[int, int]] = {}
    for number in range(rounds):
        for index, entry in enumerate(entries):
            if entry.process is None:
                continue
            say(f"round {number + 1} of {rounds}: {entry.engine.name} {entry.precision}")
            try:
                if index not in counts:
                    first = entry.process.ask("time", ANSWER, warm=1, count=1)["seconds"][0]
                    counts[index] = (min(20, 1 + int(turn / 4 / first)), min(200, max(1, round(turn / first))))
                warm, count = counts[index]
                before = read()
                entry.rounds.append(list(entry.process.ask("time", ANSWER, warm=warm, count=count)["seconds"]))
                entry.readable.append(max(before, read()))
            except EngineError as error:
                entry.fail(error)


def peaks(threads: int) -> dict[str, float]:
    """peaks.py in a process of its own, on the CPUs that the engines get."""
    cpus = sorted(os.sched_getaffinity(0))[-threads:]
    command = f"import os; os.sched_setaffinity(0, {cpus}); import runpy; "
    command += "runpy.run_module('graphc.tools.bench.peaks', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def package_version(package: str) -> str | None:
    """The installed version, None where it is not; of graphc also which sources."""
    if package == "graphc":
        return f"{graphc.__version__}+{_sources()}"
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _sources() -> str:
    """A digest of graphc's own sources: what was compiled by others has to be compiled again."""
    root, digest = Path(graphc.__file__).parent, hashlib.sha256()
    files = {path for room in (root, root / "passes", root / "backends") for path in room.rglob("*") if path.is_file()}
    for path in sorted(files):
        if path.suffix in (".py", ".c", ".h", ".json") and "tools" not in path.parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
