"""Compile a model to an artifact.

Examples:
  graphc compile model.onnx -o model.graphc
  graphc compile model.onnx -o model.graphc --target arm64 --calibration inputs.npz --budget-size "300 kB"
  graphc compile my_models.py:build -o model.graphc --shape 1,3,32,32 --dump-ir dumps
  graphc compile model.onnx -o model.graphc --write-config run.json && graphc compile --config run.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

from graphc import container
from graphc.artifact import Artifact
from graphc.cli import arrays
from graphc.cli.configuration import Configuration, resolve
from graphc.cli.numbers import positive
from graphc.cli.output import print_columns, print_json
from graphc.errors import ArtifactError


def configure(parser: argparse.ArgumentParser) -> None:
    _configure_run(parser)
    parser.add_argument("--config", metavar="FILE", help="options from a .json or .toml file; the command line wins")
    parser.add_argument("--write-config", metavar="FILE.json", help="write the options of this run, defaults resolved")


def _configure_run(parser: argparse.ArgumentParser) -> None:
    """What a configuration file may hold. Nothing has a default here: Configuration has them."""
    parser.argument_default = argparse.SUPPRESS
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        default=argparse.SUPPRESS,
        help="FILE.onnx, or FILE.py:NAME or PACKAGE.MODULE:NAME, a module or a function that returns one "
        "(or a pair of module and inputs, or an ExportedProgram)",
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="the artifact to write")
    parser.add_argument(
        "--shape", action="append", metavar="1,3,32,32[:f32]", help="an example input's sizes and dtype; once an input"
    )
    parser.add_argument("--target", metavar="NAME", help="the chip, of `graphc targets` (default: host)")
    parser.add_argument(
        "--pipeline", metavar="SPEC", help='"float" (default), "int8" (default with calibration), or passes'
    )
    parser.add_argument(
        "--calibration",
        metavar="FILE.npz",
        help="example inputs: an array for each input, by name or in order, the first dimension counts the examples",
    )
    parser.add_argument("--budget-size", metavar="SIZE", help='keep to this size, such as "300 kB"')
    parser.add_argument("--dump-ir", metavar="DIR", help="write the graph after every pass")
    parser.add_argument("--drift", action="store_true", help="fail where a pass changes results more than it promises")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of everything random (default: 0)")
    parser.add_argument(
        "--entropy-coding", action="store_true", help="store the weights coded: smaller, slower to load"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of torch while calibrating")


def run(arguments: argparse.Namespace) -> int:
    given = vars(arguments)
    parser = argparse.ArgumentParser(prog="graphc compile", allow_abbrev=False)
    _configure_run(parser)
    configuration = resolve(given, given.get("config"), parser)
    if "write_config" in given:
        content = json.dumps(dataclasses.asdict(configuration), indent=2) + "\n"
        container.write(given["write_config"], content.encode())

    folder = Path(configuration.output).resolve().parent
    if not folder.is_dir():  # known before the work, not after it
        raise ArtifactError(f"cannot write the artifact '{configuration.output}': there is no folder '{folder}'")
    start = time.perf_counter()
    artifact = _compile(configuration, arguments.verbose)
    artifact.save(configuration.output)
    facts = {
        "output": configuration.output,
        "target": artifact.target.name,
        "steps": len(artifact.plan["steps"]),
        "bytes of weights": artifact.size.weights,
        "bytes of code": artifact.size.code,
        "bytes of file": artifact.size.file,
        "sha256": artifact.content_hash,
        "seconds": round(time.perf_counter() - start, 2),
    }
    if arguments.json:
        print_json(facts)
    else:
        print_columns((key, f"{value:,}" if isinstance(value, int) else str(value)) for key, value in facts.items())
    return 0


def _compile(configuration: Configuration, verbose: bool) -> Artifact:
    import torch

    import graphc
    from graphc.cli import model
    from graphc.progress import terminal
    from graphc.watch import Timing

    if configuration.threads is not None:
        torch.set_num_threads(configuration.threads)
    with terminal() as show:
        show("tracing", 0, 1)
        graph = model.trace(configuration.model, configuration.shape)
    calibration = None
    if configuration.calibration is not None:
        leaves = arrays.read([configuration.calibration], [node.name for node in graph.placeholders])
        args, kwargs = graph.inputs.unflatten([torch.from_numpy(leaf) for leaf in leaves])
        calibration = [kwargs or args]
    timing = Timing()
    try:
        return graphc.compile(
            graph,
            configuration.target,
            calibration=calibration,
            budget=graphc.Budget(size=configuration.budget_size) if configuration.budget_size is not None else None,
            pipeline=configuration.pipeline,
            dump_ir=configuration.dump_ir,
            drift=configuration.drift,
            watch=(timing,),
            seed=configuration.seed,
            entropy_coding=configuration.entropy_coding,
        )
    finally:
        if verbose:
            for applied, seconds, before, after in timing.rows:
                print(f"{seconds:8.3f} s  {applied}: {before} -> {after} nodes", file=sys.stderr)
