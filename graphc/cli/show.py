"""Print what is inside an artifact or an IR dump.

Examples:
  graphc show model.graphc
  graphc show model.graphc --plan
  graphc show model.graphc --ir > model.txt
  graphc show dumps/05_drop_unused.txt
"""

from __future__ import annotations

import argparse
import operator
from collections import Counter
from pathlib import Path
from typing import Any

import graphc
from graphc.artifact import Artifact
from graphc.cli.output import print_columns, print_json, tensor
from graphc.errors import ArtifactError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="an artifact, or an IR dump (.txt) with its weights beside it")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--ir", action="store_true", help="print the graph as IR text")
    part.add_argument("--plan", action="store_true", help="print the kernels in the order in which they run")


def run(arguments: argparse.Namespace) -> int:
    if arguments.file.endswith(".txt"):
        return _show_dump(Path(arguments.file), arguments)
    artifact = graphc.load(arguments.file)
    if arguments.ir:
        _print_ir(artifact.graph_text, arguments)
    elif arguments.plan and arguments.json:
        print_json(artifact.plan)
    elif arguments.plan:
        steps = artifact.plan["steps"]
        rows = [(str(i), step["template"], step["path"], " ".join(step["nodes"])) for i, step in enumerate(steps)]
        print_columns([("STEP", "TEMPLATE", "LAYER", "NODES"), *rows])
    else:
        _print_facts(_facts(artifact), arguments)
    return 0


def _facts(artifact: Artifact) -> dict[str, Any]:
    plan, manifest = artifact.plan, artifact.manifest
    return {
        "name": manifest["name"],
        "target": artifact.target.name,
        "architecture": artifact.target.arch,
        "features": list(artifact.target.features),
        "inputs": [tensor(info) for info in plan["inputs"]],
        "outputs": [tensor(info) for info in plan["outputs"]],
        "sizes": [_range(**symbol) for symbol in plan["symbols"]],
        "pipeline": manifest["pipeline"],
        "seed": manifest["seed"],
        "steps": len(plan["steps"]),
        "bytes of weights": artifact.size.weights,
        "bytes of code": artifact.size.code,
        "bytes of file": artifact.size.file,
        "bytes of working memory": plan["arena_bytes"] + plan["state_bytes"],
        "versions": {"graphc": manifest["graphc"], **manifest["versions"]},
        "sha256": artifact.content_hash,
    }


def _show_dump(path: Path, arguments: argparse.Namespace) -> int:
    from graphc import text

    if arguments.plan:
        raise ArtifactError(f"'{path}' is an IR dump: only artifacts have a plan")
    graph = text.read(path)
    graphc.verify(graph)
    if arguments.ir:
        _print_ir(graphc.dump(graph), arguments)
        return 0
    calls = [node.target for node in graph if node.op == "call_function"]
    operators = Counter("getitem" if call is operator.getitem else str(call) for call in calls)
    facts = {
        "name": graph.name,
        "inputs": [f"{node.name} : {node.meta['type']}" for node in graph.placeholders],
        "sizes": [_range(name, r.minimum, r.maximum) for name, r in graph.symbols.items()],
        "operators": dict(operators.most_common()),
        "bytes of weights": sum(tensor.nbytes for tensor in graph.weights.values()),
    }
    _print_facts(facts, arguments)
    return 0


def _range(name: str, minimum: int, maximum: int) -> str:
    return f"{name} in [{minimum}, {maximum}]"


def _print_ir(ir: str, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json({"graph": ir})
    else:
        print(ir, end="")


def _print_facts(facts: dict[str, Any], arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json(facts)
    else:
        print_columns((key, _cell(value)) for key, value in facts.items())


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
