"""All groups one after the other; what is done is kept."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from graphc.tools.bench import measurement, results
from graphc.tools.bench.engines import EAGER, Engine
from graphc.tools.bench.measurement import Group
from graphc.tools.bench.workloads import BATCHED, WORKLOADS


def groups(models: Sequence[str], batches: Sequence[int], threads: Sequence[int]) -> list[Group]:
    """Batches above one only where they mean something."""
    module = "graphc.tools.bench.workloads"
    return [
        Group(f"{module}:{model}", batch, count)
        for model in models
        for batch in (batches if model in BATCHED else [1])
        for count in threads
    ]


def names(group: Group) -> dict[str, Any]:
    return {"workload": group.name, "batch": group.batch, "threads": group.threads}


def key(group: Mapping[str, Any]) -> tuple[str, int, int]:
    return group["workload"], group["batch"], group["threads"]


def prepare(wanted: Iterable[Group], engines: Sequence[Engine], cache: Path, console: Console) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "log.txt").open("a") as log:
        for group in wanted:
            measurement.prepare(group, WORKLOADS[group.name].kind, engines, cache, log, console.print)


def measure(
    wanted: Iterable[Group],
    engines: Sequence[Engine],
    cache: Path,
    output: Path,
    rounds: int,
    again: bool,
    console: Console,
) -> None:
    """Measure each group that `output` does not have yet, or has of other versions, and keep it there at once."""
    cache.mkdir(parents=True, exist_ok=True)
    machine, versions = (
        results.machine(),
        {engine.name: measurement.package_version(engine.package) for engine in (EAGER, *engines)},
    )
    found = results.read(output) if output.exists() else {"groups": []}
    kept = {key(group): group for group in found["groups"] if found.get("machine") == machine}
    with (cache / "log.txt").open("a") as log, Live("", console=console, auto_refresh=False, transient=True) as live:
        for group in wanted:
            done = kept.get(key(names(group)))
            if done is not None and not again and done["versions"] == versions:
                continue
            title = f"{group.name}, batch {group.batch}, {group.threads} thread(s)"
            say = partial(_say, live, title)
            work = WORKLOADS[group.name]
            say("measuring the machine's peaks")
            peaks = measurement.peaks(group.threads)
            entries = measurement.measure(group, work.kind, engines, cache, rounds, log, say)
            after = measurement.peaks(group.threads)
            operations, weights = work.cost(group.batch)
            kept[key(names(group))] = {
                **names(group),
                "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
                "versions": versions,
                "operations": operations,
                "weights": weights,
                "peaks": {name: max(value, after[name]) for name, value in peaks.items()},
                "metric": work.metric,
                "entries": entries,
            }
            results.write(output, {"machine": machine, "groups": [kept[name] for name in sorted(kept)]})
            console.print(f"{title}: done")


def _say(live: Live, title: str, text: str) -> None:
    """Draws now and not beside a measurement, as a spinner would."""
    live.update(f"{title}: {text}", refresh=True)
