"""Passes and the order in which they run.

A pass is a function from Graph to Graph: a frozen dataclass whose fields are its options, in a file of its own name.
A pipeline is written as it is printed: `fold_batchnorm,quantize{calibration=mse},fuse_operators`.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import pkgutil
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch

from graphc.errors import GraphcError, PassError, VerificationError
from graphc.graph import Graph
from graphc.memory import kept_memory
from graphc.target import Target
from graphc.verifier import verify

Fidelity = Literal["exact", "close", "lossy"]


@dataclass(frozen=True)
class PassContext:
    """What passes may ask for; given to every one of them.

    calibration: batches of flat inputs (lists of tensors), never empty lists. seed: for everything random.
    executor: where long work is spread, None for this thread. progress: called with (what, done, total). original: the
    graph before the first pass that is lossy, for those that bring back what was lost; `Pipeline.run` sets it.
    """

    target: Target = field(default_factory=lambda: Target.parse("host"))
    calibration: Sequence[Sequence[torch.Tensor]] = ()
    metric: Callable[[Callable[..., Any]], float] | None = None
    budget: Any = None
    seed: int = 0
    executor: Executor | None = None
    progress: Callable[[str, int, int], None] = lambda what, done, total: None
    original: Graph | None = None


@dataclass(frozen=True)
class Pass:
    """A transformation. Subclasses are frozen dataclasses: their fields are the options, with defaults.

    fidelity promises how the graph's results may change: "exact" up to the rounding of floating point, "close" within
    rounding of an equivalent formula or one quantization step, "lossy" by design. A pass returns a new graph, or the
    very one it was given where nothing applied, and never changes its input: `graph.clone()` first.
    """

    fidelity: ClassVar[Fidelity] = "exact"

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        raise NotImplementedError

    @property
    def name(self) -> str:
        """FoldBatchnorm -> fold_batchnorm."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()

    def __str__(self) -> str:
        changed = [f for f in fields(self) if getattr(self, f.name) != f.default]
        options = ",".join(f"{f.name}={_option_text(getattr(self, f.name))}" for f in changed)
        return f"{self.name}{{{options}}}" if options else self.name


@dataclass(frozen=True)
class Step:
    """One pass of a run: its place (from 1), how many there are, the pass, and the seconds that it took."""

    index: int
    total: int
    applied: Pass
    seconds: float

    def __str__(self) -> str:
        return f"{self.index:02d}_{self.applied.name}"


Watch = Callable[[Step, Graph, Graph], None]


class Pipeline:
    """Passes in the order in which they run.

    >>> Pipeline("fold_batchnorm,quantize{bits=8},fuse_operators").run(graph, ctx)
    """

    def __init__(self, passes: str | Iterable[Pass]) -> None:
        self.passes: tuple[Pass, ...] = tuple(parse_passes(passes) if isinstance(passes, str) else passes)

    def __str__(self) -> str:
        return ",".join(str(item) for item in self.passes)

    def run(self, graph: Graph, ctx: PassContext | None = None, watch: Iterable[Watch] = ()) -> Graph:
        """Run all passes; each result is verified, then shown to every watcher as `watch(step, before, after)`.

        Raises what a pass raises for the user (GraphcError) as it is. A pass that fails in another way, whose result is
        wrong or that a watcher finds wrong (VerificationError) is a PassFailure that names it.
        """
        ctx = ctx or PassContext()
        watchers = tuple(watch)
        for index, item in enumerate(self.passes, 1):
            before, start = graph, time.perf_counter()
            if item.fidelity == "lossy" and ctx.original is None:
                ctx = replace(ctx, original=before)
            try:
                with _seeded(ctx.seed), kept_memory():
                    graph = item.run(before, ctx)
                if graph is not before:
                    verify(graph)
            except VerificationError as error:
                raise PassFailure(
                    f"the result of pass '{item}' is wrong: {error}", item, before, ctx.original
                ) from error
            except GraphcError:
                raise
            except Exception as error:
                raise PassFailure(
                    f"pass '{item}' failed: {type(error).__name__}: {error}", item, before, ctx.original
                ) from error
            step = Step(index, len(self.passes), item, time.perf_counter() - start)
            for watcher in watchers:
                try:
                    watcher(step, before, graph)
                except VerificationError as error:
                    raise PassFailure(
                        f"the result of pass '{item}' is wrong: {error}", item, before, ctx.original
                    ) from error
        return graph


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The same random numbers for each pass; the user's own go on afterwards as if nothing had happened."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


class PassFailure(PassError):
    """A pass that failed, with the graph it was given and the original: what a crash reproducer needs."""

    def __init__(self, message: str, applied: Pass, before: Graph, original: Graph | None = None) -> None:
        super().__init__(message)
        self.applied = applied
        self.before = before
        self.original = None if original is before else original


# -- the registry: a file's name is its pass's name -----------------------------------------------


def pass_names() -> list[str]:
    """All passes by name: the files of `graphc.passes`, then the entry points of the group "graphc.passes"."""
    return _own_names() + sorted(point.name for point in entry_points(group="graphc.passes"))


def _own_names() -> list[str]:
    import graphc.passes

    return sorted(module.name for module in pkgutil.iter_modules(graphc.passes.__path__))


def find_pass(name: str) -> type[Pass]:
    """The class of a pass. Raises PassError that lists what there is."""
    if name not in _own_names():
        for point in entry_points(group="graphc.passes"):
            if point.name == name:
                found: type[Pass] = point.load()
                return found
        known = pass_names()
        close = difflib.get_close_matches(name, known, 1)
        guess = f" (did you mean '{close[0]}'?)" if close else ""
        raise PassError(f"unknown pass '{name}'{guess}; known passes: {', '.join(known)}")
    module = importlib.import_module(f"graphc.passes.{name}")
    for _, member in inspect.getmembers(module, inspect.isclass):
        if issubclass(member, Pass) and member.__module__ == module.__name__ and member().name == name:
            return member
    raise PassError(f"the file of pass '{name}' defines no Pass class of that name")


# -- spec strings ---------------------------------------------------------------------------------

_STRING = r'"(?:[^"\\]|\\.)*"'
_SPEC = re.compile(rf'\s*(?P<name>\w+)\s*(?:\{{(?P<options>(?:{_STRING}|[^}}"])*)\}})?\s*(?:,|$)')
_OPTION = re.compile(rf'\s*(?P<key>\w+)\s*=\s*(?P<value>{_STRING}|\[(?:{_STRING}|[^\]"])*\]|[^,"\[\]]*?)\s*(?:,|$)')
_ITEM = re.compile(rf'{_STRING}|[^,"\s]+')


def parse_passes(spec: str) -> list[Pass]:
    """The passes of a spec string. Raises PassError for an unknown pass or option, or a value of another type."""
    passes: list[Pass] = []
    spec, at = spec.strip(), 0
    while at < len(spec):
        found = _SPEC.match(spec, at)
        if found is None:
            raise PassError(f"cannot read the pipeline at '{spec[at:]}'; expected name or name{{option=value,...}}")
        passes.append(_build(find_pass(found["name"]), found["name"], found["options"] or ""))
        at = found.end()
    return passes


def _build(kind: type[Pass], name: str, text: str) -> Pass:
    hints = get_type_hints(kind)
    options = {f.name: hints[f.name] for f in fields(kind)}
    values: dict[str, Any] = {}
    at = 0
    while at < len(text):
        found = _OPTION.match(text, at)
        if found is None:
            raise PassError(f"cannot read the options of '{name}' at '{text[at:]}'; expected option=value")
        key = found["key"]
        if key not in options:
            legal = ", ".join(options) or "none"
            raise PassError(f"pass '{name}' has no option '{key}'; its options: {legal}")
        if key in values:
            raise PassError(f"pass '{name}' has the option '{key}' twice")
        values[key] = _option_value(name, key, found["value"], options[key])
        at = found.end()
    return kind(**values)


def _option_value(name: str, key: str, text: str, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        items = _ITEM.findall(text[1:-1] if text.startswith("[") else text)
        return tuple(_option_value(name, key, item, inner) for item in items)
    try:
        plain = json.loads(text) if text.startswith('"') else text
    except ValueError:
        raise PassError(f"pass '{name}': {key}={text} is no string") from None
    if get_origin(kind) is Literal:
        if plain in get_args(kind):
            return plain
        raise PassError(f"pass '{name}': {key}={text} must be one of {', '.join(map(str, get_args(kind)))}")
    try:
        if kind is bool:
            return {"true": True, "false": False}[plain.lower()]
        if kind in (int, float, str):
            return kind(plain)
    except (KeyError, ValueError):
        pass
    raise PassError(f"pass '{name}': {key}={text} is no {getattr(kind, '__name__', kind)}")


def _option_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{','.join(_option_text(item) for item in value)}]"
    return json.dumps(value) if isinstance(value, str) and not re.fullmatch(r"[\w.-]+", value) else str(value)


# -- presets --------------------------------------------------------------------------------------

CLEAN = "canonicalize,fold_constants,fold_batchnorm,eliminate_common_subexpressions,drop_unused"
FINISH = "integer_arithmetic,eliminate_common_subexpressions,drop_unused,fuse_operators"
PRESETS = {
    "float": f"{CLEAN},integer_arithmetic,fuse_operators",
    "bf16": f"{CLEAN},bfloat16,integer_arithmetic,fuse_operators",
    "int8": f"{CLEAN},quantize,{FINISH}",
}


def pipeline(spec: str | Pipeline | Iterable[Pass]) -> Pipeline:
    """A preset's name ("float", "int8"), a spec string, passes, or a Pipeline as it is."""
    if isinstance(spec, Pipeline):
        return spec
    if isinstance(spec, str):
        return Pipeline(PRESETS.get(spec, spec))
    return Pipeline(spec)
