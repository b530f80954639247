"""What a search of the kernels' parameters finds on this machine, and what it gains: `python -m graphc.tools.tuning`.

For each network, in the precision that its name ends in: the time with the templates' defaults over that with what was
found, both versions in turns on all CPUs. What ships with graphc was found by

    python -m graphc.tools.tuning --database graphc/tuning/tuned.json --output tools/results/tuning.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import graphc
from graphc import compiler
from graphc.calibration import batches
from graphc.measurement import step_times
from graphc.pipeline import PassContext, pipeline
from graphc.progress import silent
from graphc.target import Target
from graphc.tools import statement
from graphc.tools.bench.workloads import WORKLOADS
from graphc.tools.statement import Known
from graphc.tuning import Database, tune

NETWORKS = ("resnet20_int8", "mobilenet_v2_int8", "resnet18_int8", "resnet18_float", "minilm_int8")


def gained(name: str) -> statement.Measure:
    def search(options: argparse.Namespace, known: Known) -> None:
        if "default / tuned" in known:
            return
        network, _, preset = name.rpartition("_")
        work, target = WORKLOADS[network], Target.parse("host")
        traced = graphc.trace(work.build(), work.inputs(1))
        data = batches(traced, work.calibration()[: options.limit])
        graph = pipeline(preset).run(traced, PassContext(target, data))
        database = Database.load(options.database) if options.database else Database()

        def save(found: Database) -> None:
            if options.database:
                found.save(options.database)

        found = tune(graph, target, database, progress=options.progress, save=save)
        chosen = {workload: entry.parameters for workload, entry in found.items()}
        files = [compiler.bare(graph, compiler.lower(graph, target, silent, each)).content for each in ({}, chosen)]
        default, tuned = (sum(steps) for steps in step_times(files, rounds=50))
        known["kernels"] = len(found)
        known["kernels that gain"] = sum(bool(parameters) for parameters in chosen.values())
        known["default / tuned"] = default / tuned

    return search


def main(arguments: Sequence[str] | None = None) -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--database", type=Path, help="a tuning database, which the search goes on from and fills")

    return statement.main("graphc.tools.tuning", __doc__, {name: gained(name) for name in NETWORKS}, arguments, add)


if __name__ == "__main__":
    sys.exit(main())
