"""The measured latency of each layer in each weight format, on the device at hand.

The whole model is compiled once a format, with every layer in it, and all versions run in turns: a layer is timed
between its neighbours, with the caches that they leave it. What was measured is kept by shape, device and threads, so
that another model with such layers, or another run, asks no more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

from torch import fx

from graphc import container
from graphc.compiler import bare, lower
from graphc.errors import TargetError, TuningError
from graphc.graph import Graph
from graphc.measurement import step_times
from graphc.passes.compress import takes, weight_name
from graphc.pipeline import CLEAN, FINISH, PassContext, Pipeline
from graphc.probe import random_inputs
from graphc.program import Program
from graphc.progress import Progress, silent
from graphc.target import Target, machine_arch, machine_model
from graphc.tensor_type import TensorType
from graphc.tuning.search import LEAST_GAIN

BASELINE = "f32"

# The passes that bring every layer into a format, between those that clean the graph and those that finish it.
FORMATS: dict[str, str] = {
    BASELINE: "",
    "bf16": "bfloat16",
    "int8": "quantize{calibration=minmax,bias_correction=false}",
    **{
        f"int{bits} g32": f'compress{{format="linear(bits={bits},group=32)",unfit=keep}},quantize_activations'
        for bits in (4, 3, 2)
    },
    # How near the codewords come to the weights does not matter here.
    "vq 2 bits": 'compress{format="vector(iterations=0)",unfit=keep},tabulate',
    "vq 1 bit": 'compress{format="vector(d=8,iterations=0)",unfit=keep},tabulate',
    "2:4 f16": "compress{format=sparse,unfit=keep}",
    "blocks f16": "compress{format=block_sparse,unfit=keep}",
}


@dataclass(frozen=True)
class Latency:
    """Nanoseconds of a layer (the user's path) in a format; the kernel's own reason where it is not the fast form."""

    layer: str
    format: str
    nanoseconds: float
    reason: str = ""


class LatencyTable:
    """Latencies by layer and format.

    >>> table["layer1.0.conv1", "int8"].nanoseconds
    """

    def __init__(self, entries: Mapping[tuple[str, str], Latency]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, key: tuple[str, str]) -> Latency:
        return self._entries[key]

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[Latency]:
        return iter(self._entries.values())

    def slower(self) -> Iterator[Latency]:
        """The layers whose form in a format is not faster than in f32, beyond noise, each with the reason."""
        for entry in self:
            plain = self._entries.get((entry.layer, BASELINE))
            if (
                plain is not None
                and entry.format != BASELINE
                and entry.nanoseconds >= plain.nanoseconds * (1 - LEAST_GAIN)
            ):
                yield entry if entry.reason else replace(entry, reason=_why(entry))


def _why(entry: Latency) -> str:
    if entry.nanoseconds < 5_000:
        return "starting the kernel takes longer than the layer"
    return "bound by arithmetic or activations, which this format does not make fewer"


def measure(
    graph: Graph,
    target: Target,
    formats: Mapping[str, str] | None = None,
    *,
    executor: Executor | None = None,
    threads: int | None = None,
    rounds: int = 20,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> LatencyTable:
    """The latencies of all layers of a traced graph in all formats (names and passes as in FORMATS).

    executor: where to measure (None: here; a `Board` for another device). cache: a JSON file; None is the user's own.
    A layer that a format cannot take has no entry for it. Raises TargetError where this machine cannot time the target
    and no executor is given.

    >>> measure(graphc.trace(model, (x,)), Target.parse("host"))["fc", "int8"]
    """
    if executor is None and target.arch != machine_arch():
        raise TargetError(f"this machine cannot time code for {target.name}; give an executor, such as a graphc.Board")
    wanted = FORMATS if formats is None else {BASELINE: "", **formats}
    clean = Pipeline(CLEAN).run(graph, PassContext(target))
    layers = {node.meta["path"] or node.name: _signature(node) for node in clean.calls if takes(clean, node)}
    path = Path(cache) if cache is not None else _cache()
    known = _read(path)
    where = f"{machine_model() if executor is None else 'executor'} {' '.join(target.features)} threads={threads}"

    def key(layer: str, name: str) -> str:
        return f"{where} | {layers[layer]} | {name}: {wanted[name]}"

    missing = [name for name in wanted if any(key(layer, name) not in known for layer in layers)]
    if missing:
        compiled: dict[str, tuple[Graph, Program]] = {}
        for number, name in enumerate(missing):
            progress("compiling", number, len(missing))
            compiled[name] = _compiled(clean, target, wanted[name])
        progress("measuring", 0, 1)
        files = [bare(clean, program).content for _, program in compiled.values()]
        if executor is None:
            times = step_times(files, threads, rounds)
        else:
            times = executor.submit(step_times, files, threads, rounds).result()
        progress("measuring", 1, 1)
        for (name, (transformed, program)), steps in zip(compiled.items(), times, strict=True):
            found, left = _by_layer(program, steps), set() if name == BASELINE else _untouched(transformed, clean)
            alike: dict[str, list[tuple[float, str]]] = {}  # layers of one shape share their mean
            for layer in layers:
                known[key(layer, name)] = None
                if layer in found and layer not in left:
                    alike.setdefault(key(layer, name), []).append(found[layer])
            known.update({k: (sum(ns for ns, _ in each) / len(each), each[0][1]) for k, each in alike.items()})
        path.parent.mkdir(parents=True, exist_ok=True)
        container.write(path, (json.dumps(dict(sorted(known.items())), indent=1) + "\n").encode())
    entries = {}
    for layer in layers:
        for name in wanted:
            if (measured := known[key(layer, name)]) is not None:
                entries[layer, name] = Latency(layer, name, *measured)
    return LatencyTable(entries)


def _signature(node: fx.Node) -> str:
    """A layer by its types and geometry."""

    def text(value: object) -> str:
        kind = value.meta["type"] if isinstance(value, fx.Node) else value
        return str(kind) if isinstance(kind, TensorType) else repr(value)

    return f"{node.target}({', '.join(map(text, node.args))})"


def _compiled(clean: Graph, target: Target, passes: str) -> tuple[Graph, Program]:
    ctx = PassContext(target, [random_inputs(clean)])
    graph = Pipeline(",".join(filter(None, (passes, FINISH)))).run(clean, ctx)
    return graph, lower(graph, target, silent)


def _untouched(graph: Graph, clean: Graph) -> set[str]:
    """The layers that still have the plain f32 weight that they had."""
    plain = set()
    for node in graph.calls:
        if takes(graph, node) and weight_name(node) in clean.weights:
            plain.add(node.meta["path"] or node.name)
    return plain


def _by_layer(program: Program, times: Sequence[float]) -> dict[str, tuple[float, str]]:
    """Nanoseconds and reasons of a run's steps by layer."""
    found: dict[str, tuple[float, str]] = {}
    steps = program.plan["steps"][program.plan["init_steps"] :]
    for step, nanoseconds in zip(steps, times, strict=True):
        for layer in {step["path"] or name for name in step["nodes"]}:
            so_far, reason = found.get(layer, (0.0, ""))
            found[layer] = (so_far + nanoseconds, reason or step["reason"])
    return found


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphc" / "latency.json"


def _read(path: Path) -> dict[str, tuple[float, str] | None]:
    if not path.exists():
        return {}
    try:
        return {key: None if value is None else (float(value[0]), str(value[1])) for key, value in
                json.loads(path.read_text()).items()}  # fmt: skip
    except (ValueError, TypeError, AttributeError, IndexError, OSError) as error:
        raise TuningError(f"cannot read the latencies in '{path}': {error}. Delete the file.") from None
