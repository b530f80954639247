"""One call from a model to an artifact."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import fx

import graphc
from graphc import calibration as calibrating
from graphc import formats as weight_formats
from graphc import reproducer, text
from graphc.acceptance import Judge, Metric
from graphc.artifact import Artifact
from graphc.budget import Budget
from graphc.cost import macs
from graphc.errors import BudgetError
from graphc.frontends import trace
from graphc.graph import Graph, is_item
from graphc.memory import kept_memory
from graphc.operators import DECODINGS
from graphc.pipeline import PassContext, PassFailure, Pipeline, Watch, pipeline
from graphc.program import Program
from graphc.progress import Progress, terminal
from graphc.report import Report, Row
from graphc.target import Target
from graphc.tuning.database import Database
from graphc.verifier import verify
from graphc.watch import Drift, DumpIR, LayerError

# The backend that lowers for an architecture.
BACKENDS = {"x86-64": "graphc.backends.tvm", "arm64": "graphc.backends.tvm"}


def compile(
    model: Any,
    target: str | Target = "host",
    example_inputs: Sequence[Any] | None = None,
    calibration: Iterable[Any] | None = None,
    budget: Budget | None = None,
    metric: Metric | None = None,
    pipeline: str | Pipeline | Iterable[Any] | None = None,
    *,
    held_back: Metric | None = None,
    formats: Sequence[str] | None = None,
    recovery: int | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    name: str | None = None,
    dump_ir: str | Path | None = None,
    drift: bool = False,
    watch: Iterable[Watch] = (),
    seed: int = 0,
    entropy_coding: bool = False,
    executor: Executor | None = None,
    progress: bool | None = None,
) -> Artifact:
    """Trace, transform and lower a model; returns the artifact.

    model: nn.Module, ExportedProgram, `.onnx` path, onnx.ModelProto or Graph.
    target: a name of `graphc targets`. example_inputs, example_kwargs, dynamic_shapes: see `graphc.trace`.
    calibration: any iterable of inputs (a tensor, a tuple of positional inputs, or a dict of keyword inputs).
    metric: callable(run) -> float, higher is better, where run(batch) gives the outputs as numpy arrays.
    budget: bounds that the artifact must keep, measured on the artifact itself; BudgetError with the figures where it
    does not. With calibration data and no pipeline the weights' formats are searched for (see `graphc.search`): the
    smallest that keeps metric_drop, else the best that keeps the other bounds; the report shows what was measured.
    held_back: the metric on data that the search does not look at; metric_drop must hold there as well. formats: those
    that compete for each layer (None: graphc.analysis.candidates.FORMATS). recovery: steps of training of what is tried
    (the pass `recover`), None for as many as are quick.
    pipeline: None without a budget is "float" without calibration and "int8" with it; else a preset's name, a spec
    string, passes, or a Pipeline, and the budget is only checked. dump_ir: a folder for one IR file a pass. drift: run
    a probe after every pass, and fail where one changes more than it promises. watch: further observers of the passes.
    entropy_coding: store the weights coded (graphc.entropy): a smaller file that takes longer to load, and then as much
    memory; figures of bytes are those stored. executor: where long work is spread. progress: draw bars; None where
    standard error is a terminal.

    The same model, data, seed and versions give the same bytes.

    >>> graphc.compile(model, target="arm64", example_inputs=(x,)).save("model.graphc")
    """
    resolved = Target.parse(target)
    searching = budget is not None and calibration is not None and pipeline is None
    passes = _pipeline(pipeline, calibration)
    with terminal(progress) as show, kept_memory():
        show("tracing", 0, 1)
        source = trace(model, example_inputs, example_kwargs, dynamic_shapes, name)
        verify(source)
        show("tracing", 1, 1)
        judge = None if budget is None else Judge(budget, source, metric, held_back)
        data = calibrating.batches(source, calibration) if calibration is not None else []
        watchers = list(watch)
        if dump_ir is not None:
            watchers.append(DumpIR(Path(dump_ir)))
        if drift:
            watchers.append(Drift(data[0] if data else _probe(source, seed)))
        ctx = PassContext(resolved, data, metric, budget, seed, executor, show)

        if searching and judge is not None:
            from graphc.search import search

            found = search(
                source,
                ctx,
                judge,
                lambda chosen: _build(chosen, source, ctx, (), dump_ir, entropy_coding),
                formats,
                recovery,
            )
            if watchers:  # they see the run that is kept, and no other
                _transform(found.pipeline, source, ctx, watchers, dump_ir)
            return found.artifact
        artifact, _ = _build(passes, source, ctx, watchers, dump_ir, entropy_coding)
    if judge is not None:
        broken = judge.verified(artifact, judge.measure(artifact)).broken(judge.budget)
        if broken:
            raise BudgetError(
                "the artifact does not keep its budget:\n  " + "\n  ".join(broken) + "\nGive calibration data and no "
                "pipeline to search for one that does, choose another pipeline, or raise the bound."
            )
    return artifact


def _build(
    passes: Pipeline,
    source: Graph,
    ctx: PassContext,
    watchers: Sequence[Watch],
    dump_ir: str | Path | None,
    entropy_coding: bool,
) -> tuple[Artifact, Graph]:
    """The artifact, and the graph that it was lowered from."""
    errors = LayerError(ctx.calibration[0] if ctx.calibration else None)
    graph = _transform(passes, source, ctx, [errors, *watchers], dump_ir)
    program = lower(graph, ctx.target, ctx.progress)
    manifest = {
        "graphc": graphc.__version__,
        "name": graph.name,
        "pipeline": str(passes),
        "seed": ctx.seed,
        "inputs": graph.inputs.to_json(),
        "outputs": graph.outputs.to_json(),
        "versions": {package: version(package) for package in ("torch", "apache-tvm", "apache-tvm-ffi", "ziglang")},
    }
    report = _report(graph, program, errors.rows, {"target": ctx.target.name, "pipeline": str(passes)})
    artifact = Artifact.build(program, text.dump(graph), report.to_json(), manifest, entropy_coding)
    if artifact.coded:
        totals = {"bytes of weights": artifact.size.weights, "bytes of weights, decoded": len(program.weights)}
        artifact = artifact.with_report(replace(report, totals=dict(report.totals) | totals))
    return artifact, graph


def lower(
    graph: Graph, target: Target, progress: Progress, tuned: Mapping[str, Mapping[str, int]] | None = None
) -> Program:
    """Hand a graph to the target's backend.

    tuned: template parameters by workload; None is what the tuning database holds.
    """
    backend = importlib.import_module(BACKENDS[target.arch])
    if tuned is None:
        tuned = Database.load().parameters(target)
    program: Program = backend.lower(graph, target, progress=progress, tuned=tuned)
    return program


def bare(graph: Graph, program: Program) -> Artifact:
    """An artifact with no more than running takes, such as measuring needs."""
    return Artifact.build(program, "", {}, {"inputs": graph.inputs.to_json(), "outputs": graph.outputs.to_json()})


def _pipeline(given: str | Pipeline | Iterable[Any] | None, calibration: object) -> Pipeline:
    if given is None:
        given = "float" if calibration is None else "int8"
    return pipeline(given)


def _transform(
    passes: Pipeline, source: Graph, ctx: PassContext, watchers: Sequence[Watch], dump_ir: str | Path | None
) -> Graph:
    try:
        return passes.run(source, ctx, watchers)
    except PassFailure as failure:
        folder = reproducer.write(failure, ctx, Path(dump_ir) / "crash" if dump_ir is not None else None)
        command = f"graphc passes --reproduce {folder}"
        message = f"{failure}\nTo run it again: {command}"
        raise type(failure)(message, failure.applied, failure.before, failure.original) from failure


def _probe(graph: Graph, seed: int) -> list[torch.Tensor]:
    """Random inputs of the graph's types, dynamic sizes at their minimum."""
    from graphc.probe import random_inputs

    return random_inputs(graph, seed)


# -- the report -----------------------------------------------------------------------------------


def _report(graph: Graph, program: Program, errors: Mapping[str, float], facts: Mapping[str, Any]) -> Report:
    nodes = {node.name: node for node in graph}
    rows = []
    for step in program.plan["steps"]:
        members = [nodes[name] for name in step["nodes"]]
        anchor = max(members, key=lambda node: macs(graph, node))
        paths = [node.meta["path"] for node in (anchor, *members) if node.meta["path"]]
        error = errors.get(anchor.name)
        rows.append(
            Row(
                name=paths[0] if paths else anchor.name,
                op=_operators(members),
                format=_format(graph, members),
                bytes=sum(tensor.nbytes for tensor in _stored(graph, members).values()),
                macs=sum(macs(graph, node) for node in members),
                error=None if error is None or math.isinf(error) else round(error, 2),
                kernel=step["template"],
                reason=step.get("reason", ""),
            )
        )
    totals = {
        "bytes of weights": len(program.weights),
        "bytes of code": len(program.code),
        "bytes of working memory": program.plan["arena_bytes"] + program.plan["state_bytes"],
        "MACs": sum(row.macs for row in rows),
        "kernels": len({step["kernel"] for step in program.plan["steps"]}),
        "steps": len(rows),
    }
    return Report(tuple(rows), totals, dict(facts))


def _operators(members: Sequence[fx.Node]) -> str:
    """The operators of a step; decodings only where they are all that it does."""
    shown = [node for node in members if node.target not in DECODINGS] or members
    return "+".join(_short(node) for node in shown if not (is_item(node) and node.args[1]) or len(shown) == 1)


def _short(node: fx.Node) -> str:
    if is_item(node):
        return _short(node.args[0])  # type: ignore[arg-type]
    return str(node.target).split(".")[1] if "." in str(node.target) else str(node.target)


def _stored(graph: Graph, members: Sequence[fx.Node]) -> dict[str, torch.Tensor]:
    """The weights that a step reads, each once, those behind a decoding included."""
    found: dict[str, torch.Tensor] = {}
    waiting = [used for node in members for used in node.all_input_nodes]
    while waiting:
        node = waiting.pop()
        if node.op == "get_attr":
            found[str(node.target)] = graph.weights[str(node.target)]
        elif _is_decoding(node):
            waiting.extend(node.all_input_nodes)
    return found


def _is_decoding(node: fx.Node) -> bool:
    """Whether a value is decoded from stored weights, and is no quantized activation."""
    aten, rescale = torch.ops.aten, torch.ops.graphc.rescale.default
    known = (rescale, aten.view.default, aten.slice.Tensor, aten.mul.Tensor, aten.add.Tensor, aten.mm.default)
    if node.op == "call_function" and (node.target in DECODINGS or node.target in known):
        return all(used.op == "get_attr" or _is_decoding(used) for used in node.all_input_nodes)
    return False


def _format(graph: Graph, members: Sequence[fx.Node]) -> str:
    """The format of a step's largest weight, and how it is computed with."""
    stored = _stored(graph, members)
    if not stored:
        return ""
    for node in (used for member in members for used in (member, *member.all_input_nodes)):
        source = node.args[0] if node.target is torch.ops.aten.view.default else node
        found = weight_formats.recognize(source) if isinstance(source, fx.Node) else None
        if found is not None:
            return found.format.label
        if node.target is torch.ops.graphc.rescale.default and _is_decoding(node):
            while node.target is not torch.ops.graphc.unpack.default and node.op == "call_function":
                node = node.all_input_nodes[0]
            if node.op == "call_function":
                return f"int{node.args[1]}"
    largest = max(stored.values(), key=lambda tensor: tensor.nbytes)
    if largest.dim() < 2:  # scales and biases alone: no weight
        return ""
    names = {torch.float32: "f32", torch.int8: "int8", torch.uint8: "uint8", torch.int64: "i64", torch.int32: "i32"}
    return names.get(largest.dtype, str(largest.dtype).removeprefix("torch."))
