"""List the passes, explain one, run some on an IR dump, or run a crash reproducer.

Examples:
  graphc passes
  graphc passes fold_batchnorm
  graphc passes --run fold_constants,drop_unused dumps/00_input.txt -o folded.txt
  graphc passes --reproduce dumps/crash
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from typing import Any

from graphc.cli.output import print_columns, print_json


def configure(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument("name", nargs="?", metavar="NAME", help="print this pass's documentation")
    what.add_argument(
        "--run", nargs=2, dest="spec_and_graph", metavar=("SPEC", "GRAPH.txt"), help="run passes on a dump"
    )
    what.add_argument("--reproduce", metavar="DIR", help="run the pass of a crash reproducer again")
    parser.add_argument("-o", "--output", metavar="OUT.txt", help="where the result goes, weights beside it")


def run(arguments: argparse.Namespace) -> int:
    if arguments.spec_and_graph is not None:
        spec, path = arguments.spec_and_graph
        return _run(spec, path, arguments)
    if arguments.reproduce is not None:
        return _reproduce(arguments)
    if arguments.name is not None:
        return _explain(arguments)
    return _list(arguments)


def _list(arguments: argparse.Namespace) -> int:
    from graphc.pipeline import PRESETS, pass_names

    found = [_describe(name) for name in pass_names()]
    if arguments.json:
        print_json({"passes": found, "presets": PRESETS})
        return 0
    print_columns(
        [
            ("PASS", "FIDELITY", "OPTIONS", "MEANING"),
            *(
                (f["name"], f["fidelity"], " ".join(f"{k}={v}" for k, v in f["options"].items()), f["summary"])
                for f in found
            ),
        ]
    )
    print()
    print_columns([("PRESET", "PASSES"), *PRESETS.items()])
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    facts = _describe(arguments.name)
    if arguments.json:
        print_json(facts)
    else:
        print(facts["documentation"])
    return 0


def _describe(name: str) -> dict[str, Any]:
    from graphc.pipeline import find_pass

    kind = find_pass(name)
    documentation = (sys.modules[kind.__module__].__doc__ or kind.__doc__ or "").strip()
    return {
        "name": name,
        "fidelity": kind.fidelity,
        "options": {field.name: field.default for field in fields(kind)},
        "summary": documentation.partition("\n")[0],
        "documentation": documentation,
    }


def _run(spec: str, path: str, arguments: argparse.Namespace) -> int:
    from graphc import text
    from graphc.pipeline import pipeline

    return _finish(pipeline(spec).run(text.read(path)), arguments)


def _reproduce(arguments: argparse.Namespace) -> int:
    from graphc import reproducer

    return _finish(reproducer.run(arguments.reproduce), arguments)


def _finish(graph: Any, arguments: argparse.Namespace) -> int:
    from graphc import text

    if arguments.output is not None:
        text.save(graph, arguments.output)
    elif arguments.json:
        print_json({"graph": text.dump(graph)})
    else:
        print(text.dump(graph), end="")
    return 0
