"""Search the templates' parameters on the device, inside the whole model.

Coordinate descent over all workloads at once: for each parameter in turn the model is compiled once for each legal
value, with that value in every kernel that knows the parameter; all versions run in turns in one job, and every
workload keeps the value with which its own steps took least. Kernels are thus timed where they will run, with the
caches that their neighbours leave them, and a model takes as many compilations as there are values, not kernels. What
was found stays if it wins once more, against the defaults: the least of many noisy measurements flatters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

from graphc.graph import Graph
from graphc.measurement import step_times
from graphc.program import Program
from graphc.progress import Progress, silent
from graphc.target import Target
from graphc.tuning.database import Database, Tuned

# What is not faster by this much may be noise: the template's default stays.
LEAST_GAIN = 0.03

Lower = Callable[[Mapping[str, Mapping[str, int]]], Program]


def tune(
    graph: Graph,
    target: Target,
    database: Database,
    *,
    executor: Executor | None = None,
    threads: int | None = None,
    rounds: int = 20,
    progress: Progress = silent,
    save: Callable[[Database], None] = lambda database: None,
) -> dict[str, Tuned]:
    """Search what the database does not know yet of a graph's workloads; returns the entries of all of them.

    graph: what a pipeline gives, ready for lowering. executor: where the measuring jobs run; None is this process, a
    `Board` a device on TVM's RPC tracker. threads: of a run (None: all CPUs of the device). save(database) is called
    whenever something was found, so that an interrupted search goes on where it was.

    >>> tune(pipeline("float").run(graphc.trace(model, (x,))), Target.parse("host"), Database.load())
    """
    from graphc.compiler import bare, lower

    def compiled(chosen: Mapping[str, Mapping[str, int]]) -> Program:
        return lower(graph, target, silent, chosen)

    known = database.of(target)
    spaces = compiled(database.parameters(target)).spaces
    names = list(dict.fromkeys(name for space in spaces.values() for name in space))
    fresh: set[str] = set()
    for number, name in enumerate(names):
        progress("tuning", number, len(names))
        searched = {
            workload: space[name]
            for workload, space in spaces.items()
            if name in space and (workload not in known or name not in known[workload].searched)
        }
        if searched:
            base = database.parameters(target)
            versions = [base, *_versions(base, name, searched)]
            programs = [compiled(version) for version in versions]
            files = [bare(graph, program).content for program in programs]
            times = _measure(executor, files, threads, rounds)
            totals = [_by_workload(program, steps) for program, steps in zip(programs, times, strict=True)]
            for workload, options in searched.items():
                known[workload] = _best(known.get(workload), name, options, [total[workload] for total in totals])
            fresh |= searched.keys()
            save(database)
    if found := {workload for workload in fresh if known[workload].parameters}:
        chosen = database.parameters(target)
        programs = [compiled({key: own for key, own in chosen.items() if key not in found}), compiled(chosen)]
        times = _measure(executor, [bare(graph, program).content for program in programs], threads, rounds)
        default, best = (_by_workload(program, steps) for program, steps in zip(programs, times, strict=True))
        for workload in found:
            known[workload] = _confirmed(known[workload], best[workload], default[workload])
        save(database)
    progress("tuning", len(names), len(names))
    return {workload: known[workload] for workload in spaces}


def _versions(
    base: Mapping[str, Mapping[str, int]], name: str, searched: Mapping[str, Sequence[int]]
) -> list[dict[str, Mapping[str, int]]]:
    """Parameters for each compilation: in the i-th one every workload has its i-th value (its last, beyond that)."""
    count = max(len(options) for options in searched.values())
    return [
        {
            **base,
            **{
                workload: {**base.get(workload, {}), name: options[min(turn, len(options) - 1)]}
                for workload, options in searched.items()
            },
        }
        for turn in range(count)
    ]


def _best(entry: Tuned | None, name: str, options: Sequence[int], totals: Sequence[float]) -> Tuned:
    """The entry with the best value of one more parameter. totals: nanoseconds so far, then with each value."""
    now, *others = totals
    least = min(range(len(options)), key=lambda index: others[index])
    parameters = dict(entry.parameters) if entry else {}
    default = entry.default_nanoseconds if entry else now
    if others[least] < now * (1 - LEAST_GAIN):
        parameters[name] = options[least]
        now = others[least]
    return Tuned(parameters, (*(entry.searched if entry else ()), name), now, default)


def _confirmed(entry: Tuned, now: float, default: float) -> Tuned:
    """The entry as it was measured again; with the defaults where it does not win by enough."""
    wins = now < default * (1 - LEAST_GAIN)
    return Tuned(entry.parameters if wins else {}, entry.searched, now if wins else default, default)


def _measure(executor: Executor | None, files: list[bytes], threads: int | None, rounds: int) -> list[list[float]]:
    if executor is None:
        return step_times(files, threads, rounds)
    job: Future[list[list[float]]] = executor.submit(step_times, files, threads, rounds)
    return job.result()


def _by_workload(program: Program, times: Sequence[float]) -> dict[str, float]:
    """Nanoseconds of a run by workload."""
    steps: list[dict[str, Any]] = program.plan["steps"][program.plan["init_steps"] :]
    totals: dict[str, float] = {}
    for step, nanoseconds in zip(steps, times, strict=True):
        if "workload" in step:
            totals[step["workload"]] = totals.get(step["workload"], 0.0) + nanoseconds
    return totals
