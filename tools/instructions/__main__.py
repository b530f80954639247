"""Count the instructions of one inference: `python -m graphc.tools.instructions FILE [--json]`.

FILE is an artifact for arm64. One thread, random inputs; two runs, which must agree. Each step comes with the share of
vector multiply-adds, and with the block of code that took most: in an inner loop its body, where stores mean spills.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import graphc
from graphc.cli.output import print_columns, print_json
from graphc.errors import GraphcError
from graphc.measurement import random_inputs
from graphc.structure import Structure
from graphc.tools.instructions import Count, count_steps


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m graphc.tools.instructions", description=__doc__.split("\n")[0])
    parser.add_argument("file", metavar="FILE", help="an artifact for arm64")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    try:
        artifact = graphc.load(options.file)
        args, kwargs = Structure.from_json(artifact.manifest["inputs"]).unflatten(random_inputs(artifact))
        first, second = count_steps(artifact, *args, runs=2, **kwargs)
    except (GraphcError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    steps = artifact.plan["steps"][artifact.plan["init_steps"] :]
    found = {
        "target": artifact.target.name,
        "instructions": sum(count.instructions for count in second),
        "multiply_accumulate": share(second),
        "repeatable": [c.instructions for c in first] == [c.instructions for c in second],
        "steps": [
            {"kernel": step["kernel"], "layer": step["path"], "instructions": count.instructions,
             "multiply_accumulate": share([count]), "hottest": {"executions": count.executions, **count.hottest}}
            for step, count in zip(steps, second, strict=True)
        ],
    }  # fmt: skip
    if options.json:
        print_json(found)
    else:
        rows = [("INSTRUCTIONS", "MULTIPLY-ADDS", "IN THE HOTTEST BLOCK", "ITS SHARE", "KERNEL", "LAYER")]
        for step, count in zip(steps, second, strict=True):
            body = count.hottest
            block = f"{body['multiply_accumulate']}/{body['instructions']}, {body['store']} stores"
            taken = count.executions * body["instructions"] / count.instructions
            rows.append(
                (str(count.instructions), f"{share([count]):.1%}", block, f"{taken:.0%}", step["kernel"], step["path"])
            )
        print_columns(rows)
        print(f"{found['instructions']} instructions, {found['multiply_accumulate']:.1%} of them multiply-adds")
    return 0


def share(counts: Sequence[Count]) -> float:
    """Vector multiply-adds of all instructions."""
    total = sum(count.instructions for count in counts)
    return round(sum(count.classes["multiply_accumulate"] for count in counts) / total, 4) if total else 0.0


if __name__ == "__main__":
    sys.exit(main())
