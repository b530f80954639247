"""What choosing a format for each layer gains: `python -m graphc.tools.assignment [NAME ...]`, post-training.

resnet20     ResNet-20 on jpeg_test at 8, 16 and 24 times fewer bytes of weights than fp32: mixed formats by the integer
             program and by gates, only linear, only vector, and one linear or vector format for all layers
sensitivity  seconds of ResNet-18's gradient sensitivity over all formats, and of the integer program

Bytes are those of all weights that the graph stores. "top-1 %" is of the compressed graph in torch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import graphc
from graphc.analysis import SENSITIVITIES, gradients
from graphc.analysis.candidates import FLOAT, FORMATS, Candidates, candidates
from graphc.assignment import Assignment, Choice, choices
from graphc.assignment.gates import gates
from graphc.assignment.integer_program import integer_program
from graphc.calibration import batches
from graphc.errors import BudgetError
from graphc.graph import Graph
from graphc.pipeline import CLEAN, PassContext, Pipeline
from graphc.tools.zoo.catalog import MODELS

Figures = dict[str, Any]
RATIOS = (8, 16, 24)


def _prepared(name: str, batch: int, count: int) -> tuple[Graph, PassContext]:
    entry = MODELS[name]
    graph = Pipeline(CLEAN).run(graphc.trace(entry.build(), entry.example_inputs(batch)))
    return graph, PassContext(calibration=batches(graph, entry.calibration(count, batch)))


def _bytes(graph: Graph) -> int:
    return sum(tensor.nbytes for tensor in graph.weights.values())


def only(made: Sequence[Choice], kinds: Sequence[str]) -> list[Choice]:
    """The options of some formats alone; a layer that none of them fits keeps f32."""
    result = []
    for choice in made:
        kept = tuple(option for option in choice.options if option.format.partition("(")[0] in kinds)
        floats = tuple(option for option in choice.options if option.format == FLOAT)
        result.append(replace(choice, options=kept or floats))
    return result


def uniform(made: Sequence[Choice], kind: str, size: int) -> Assignment | None:
    """The one format of a kind for all layers that has the least predicted loss within the size; layers that it does
    not fit have the kind's own closest number of bytes below, or else its smallest format."""
    texts = sorted({option.format for choice in only(made, [kind]) for option in choice.options} - {FLOAT})
    found: list[Assignment] = []
    for text in texts:
        picked = []
        for choice in only(made, [kind]):
            same = [option for option in choice.options if option.format == text]
            picked.append(same[0] if same else min(choice.options, key=lambda option: option.bytes))
        assignment = Assignment(tuple(choice.item for choice in made), tuple(picked))
        if assignment.bytes <= size:
            found.append(assignment)
    return min(found, key=lambda assignment: assignment.loss, default=None)


def resnet20(limit: int | None, sensitivity: str, steps: int) -> Figures:
    entry = MODELS["resnet20_jpeg"]
    graph, ctx = _prepared("resnet20_jpeg", 20, 320)
    total = _bytes(graph)
    figures: Figures = {"images": limit or 10_000, "fp32 bytes": total}
    start = time.perf_counter()
    found: Candidates = candidates(graph, FORMATS, ctx)
    figures["candidates"] = len(found)
    figures["compressing all candidates, s"] = time.perf_counter() - start
    start = time.perf_counter()
    made = choices(found, SENSITIVITIES[sensitivity](graph, found, ctx))
    figures[f"sensitivity ({sensitivity}), s"] = time.perf_counter() - start
    figures["fp32 top-1 %"] = _top1(entry, graph, limit)
    fixed = total - sum(found[item.name, FLOAT].bytes for item in found.groups)
    for ratio in RATIOS:
        size = total // ratio - fixed
        ways: Mapping[str, Callable[[int], Assignment | None]] = {
            "mixed, integer program": lambda size: integer_program(made, size=size),
            "mixed, gates": lambda size: gates(graph, found, made, ctx, size, steps=steps),
            "linear and f32, integer program": lambda size: integer_program(only(made, ["linear", FLOAT]), size=size),
            "vector and f32, integer program": lambda size: integer_program(only(made, ["vector", FLOAT]), size=size),
            "uniform linear": lambda size: uniform(made, "linear", size),
            "uniform vector": lambda size: uniform(made, "vector", size),
        }
        for way, choose in ways.items():
            start = time.perf_counter()
            try:
                assignment = choose(size)
            except BudgetError:
                assignment = None
            if assignment is None:
                figures[f"{ratio}x {way}"] = "nothing fits"
                continue
            seconds = time.perf_counter() - start
            compressed = Pipeline(assignment.passes).run(graph, ctx)
            figures[f"{ratio}x {way}"] = (
                f"{_top1(entry, compressed, limit):.2f} % top-1, {_bytes(compressed):,} bytes, predicted loss "
                f"{assignment.loss:.4g}, {seconds:.2f} s"
            )
            figures[f"{ratio}x {way}: spec"] = str(assignment)
    return figures


def _top1(entry: Any, graph: Graph, limit: int | None) -> float:
    with torch.no_grad():
        value: float = entry.evaluate(graph.run, limit, 20)
    return value


def sensitivity(limit: int | None, kind: str, steps: int) -> Figures:
    graph, ctx = _prepared("resnet18", 1, limit or gradients.DRAWS)
    start = time.perf_counter()
    found = candidates(graph, FORMATS, ctx)
    encoded = time.perf_counter()
    losses = {key: row.fisher for key, row in gradients.scores(graph, found, ctx).items()}
    scored = time.perf_counter()
    made = choices(found, losses)
    total = _bytes(graph)
    assignment = integer_program(made, size=total // 8)
    return {
        "formats": len(FORMATS),
        "candidates": len(found),
        "threads": torch.get_num_threads(),
        "compressing all candidates, s": encoded - start,
        "gradient sensitivity, s": scored - encoded,
        "integer program, s": time.perf_counter() - scored,
        "8x: predicted loss": assignment.loss,
    }


FIGURES: dict[str, Callable[[int | None, str, int], Figures]] = {"resnet20": resnet20, "sensitivity": sensitivity}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m graphc.tools.assignment", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which figures (default: all): {', '.join(FIGURES)}")
    parser.add_argument("--limit", type=int, help="fewer images, for a quick look")
    parser.add_argument("--sensitivity", choices=sorted(SENSITIVITIES), default="fisher", help="of resnet20")
    parser.add_argument("--steps", type=int, default=400, help="of the gates' training")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(FIGURES))
    if unknown:
        parser.error(f"unknown figure {', '.join(unknown)}; known: {', '.join(FIGURES)}")
    measured: dict[str, Figures] = {}
    for name in options.names or FIGURES:
        measured[name] = FIGURES[name](options.limit, options.sensitivity, options.steps)
        table = Table("figure", "measured", title=name)
        for key, value in measured[name].items():
            if not key.endswith("spec"):
                table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
        Console().print(table)
        if options.output:
            beside = options.output.with_suffix(".part")
            beside.write_text(json.dumps(measured, indent=2) + "\n")
            beside.rename(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
