"""Measure each layer of a model in each weight format on this machine.

A layer whose compressed form is not faster than its float form is listed with the reason. What was measured is kept, by
shape and CPU, and serves later runs.

Examples:
  graphc latency model.onnx
  graphc latency model.onnx --formats int8,"int4 g32" --threads 1
"""

from __future__ import annotations

import argparse
from concurrent.futures import Executor
from dataclasses import asdict

from graphc.cli.numbers import positive
from graphc.cli.output import print_columns, print_json
from graphc.errors import FormatError, TuningError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="as for `graphc compile`")
    parser.add_argument("--shape", action="append", default=[], metavar="1,3,32,32[:f32]", help="an example input")
    parser.add_argument("--target", default="host", metavar="NAME", help="the chip (default: host)")
    parser.add_argument("--formats", metavar="NAME,...", help="of bf16, int8, int4 g32, ... (default: all)")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of a run (default: all CPUs)")
    parser.add_argument("--rounds", type=positive, default=20, metavar="N", help="runs of each version (default: 20)")
    parser.add_argument("--cache", metavar="FILE.json", help="where measurements are kept (default: the user's own)")
    parser.add_argument("--tracker", metavar="HOST:PORT", help="measure on a device of this TVM RPC tracker")
    parser.add_argument("--key", metavar="NAME", help="the kind of device, as it registered at the tracker")


def run(arguments: argparse.Namespace) -> int:
    from graphc.board import Board
    from graphc.cli import model
    from graphc.latency import BASELINE, FORMATS, measure
    from graphc.progress import terminal
    from graphc.target import Target

    if (arguments.tracker is None) != (arguments.key is None):
        raise TuningError("--tracker and --key go together: where the devices are, and which kind of them")
    executor: Executor | None = Board(arguments.tracker, arguments.key) if arguments.tracker else None
    names = arguments.formats.split(",") if arguments.formats else list(FORMATS)
    unknown = [name for name in names if name not in FORMATS]
    if unknown:
        raise FormatError(f"unknown format '{unknown[0]}'; known formats: {', '.join(FORMATS)}")
    with terminal() as show:
        table = measure(
            model.trace(arguments.model, arguments.shape),
            Target.parse(arguments.target),
            {name: FORMATS[name] for name in names},
            executor=executor,
            threads=arguments.threads,
            rounds=arguments.rounds,
            cache=arguments.cache,
            progress=show,
        )
    slower = {(entry.layer, entry.format): entry.reason for entry in table.slower()}
    if arguments.json:
        print_json([asdict(entry) | {"slower": slower.get((entry.layer, entry.format))} for entry in table])
        return 0
    columns = list(dict.fromkeys([BASELINE, *names]))
    layers = dict.fromkeys(entry.layer for entry in table)
    rows = [("LAYER", *(f"{name} US" for name in columns))]
    for layer in layers:
        cells = [f"{table[layer, name].nanoseconds / 1e3:.1f}" if (layer, name) in table else "-" for name in columns]
        rows.append((layer, *cells))
    print_columns(rows)
    if slower:
        print("\nNot faster than f32:")
        print_columns((layer, name, reason) for (layer, name), reason in slower.items())
    return 0
