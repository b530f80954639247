"""Search the free parameters of a model's kernels on the device, and keep the best.

Later compilations for the same device use what was found. An interrupted search goes on where it was.

Examples:
  graphc tune model.onnx
  graphc tune model.onnx --calibration inputs.npz --threads 2
  graphc tune model.onnx --target arm64:cortex-a76 --tracker 192.168.1.5:9190 --key board
"""

from __future__ import annotations

import argparse
from concurrent.futures import Executor

from graphc.cli import arrays
from graphc.cli.numbers import positive
from graphc.cli.output import print_columns, print_json
from graphc.errors import TuningError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="as for `graphc compile`")
    parser.add_argument("--shape", action="append", default=[], metavar="1,3,32,32[:f32]", help="an example input")
    parser.add_argument("--target", default="host", metavar="NAME", help="the chip (default: host)")
    parser.add_argument("--pipeline", metavar="SPEC", help='"float" (default), "int8" (with calibration), or passes')
    parser.add_argument("--calibration", metavar="FILE.npz", help="example inputs, as for `graphc compile`")
    parser.add_argument("--database", metavar="FILE.json", help="where to keep the results (default: the user's own)")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of a run (default: all of the device)")
    parser.add_argument("--rounds", type=positive, default=20, metavar="N", help="runs of each version (default: 20)")
    parser.add_argument("--tracker", metavar="HOST:PORT", help="measure on a device of this TVM RPC tracker")
    parser.add_argument("--key", metavar="NAME", help="the kind of device, as it registered at the tracker")


def run(arguments: argparse.Namespace) -> int:
    import torch

    from graphc.board import Board
    from graphc.calibration import batches
    from graphc.cli import model
    from graphc.pipeline import PassContext, pipeline
    from graphc.progress import terminal
    from graphc.target import Target, machine_arch
    from graphc.tuning import Database, tune
    from graphc.tuning.database import user_path

    target = Target.parse(arguments.target)
    if (arguments.tracker is None) != (arguments.key is None):
        raise TuningError("--tracker and --key go together: where the devices are, and which kind of them")
    if arguments.tracker is None and target.arch != machine_arch():
        raise TuningError(
            f"this machine cannot time code for {target.name}: give --tracker HOST:PORT and --key NAME of a device"
        )
    executor: Executor | None = Board(arguments.tracker, arguments.key) if arguments.tracker else None
    path = arguments.database or user_path()
    database = Database.load()
    own = Database.load(path)
    database.merge(own)
    with terminal() as show:
        graph = model.trace(arguments.model, arguments.shape)
        data = []
        if arguments.calibration is not None:
            leaves = arrays.read([arguments.calibration], [node.name for node in graph.placeholders])
            args, kwargs = graph.inputs.unflatten([torch.from_numpy(leaf) for leaf in leaves])
            data = batches(graph, [kwargs or args])
        passes = pipeline(arguments.pipeline or ("int8" if data else "float"))
        graph = passes.run(graph, PassContext(target, data, progress=show))

        def keep(found: Database) -> None:
            known = Database.load(path).of(target)
            own.of(target).update({key: entry for key, entry in found.of(target).items() if entry != known.get(key)})
            own.save(path)

        found = tune(
            graph, target, database, executor=executor, threads=arguments.threads, rounds=arguments.rounds,
            progress=show, save=keep,
        )  # fmt: skip
    if arguments.json:
        print_json({workload: dict(entry.parameters) for workload, entry in found.items()})
        return 0
    rows = [("GAIN", "US", "PARAMETERS", "WORKLOAD")]
    for workload, entry in found.items():
        chosen = " ".join(f"{name}={value}" for name, value in entry.parameters.items()) or "defaults"
        gain = entry.default_nanoseconds / entry.nanoseconds
        rows.append((f"{gain:.2f}", f"{entry.nanoseconds / 1e3:.1f}", chosen, workload))
    print_columns(rows)
    return 0
