"""Run an artifact on given or random inputs.

Code for another architecture runs under qemu-user where that is installed: the results are the chip's, the times not.

Examples:
  graphc run model.graphc --input image.npy --output logits.npz
  graphc run model.graphc --random --repeat 100
  graphc run model.graphc --random --profile
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

import graphc
from graphc import container
from graphc.artifact import Artifact
from graphc.cli import arrays
from graphc.cli.numbers import positive
from graphc.cli.output import print_columns, print_json, tensor
from graphc.measurement import random_inputs
from graphc.structure import Structure


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="an artifact that `graphc compile` wrote")
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument(
        "--input",
        action="append",
        metavar="[NAME=]FILE",
        help="a .npy file for each input, by name or in order, or one .npz file with all of them",
    )
    inputs.add_argument("--random", action="store_true", help="random inputs, always the same")
    parser.add_argument("--output", metavar="FILE.npz", help="save the outputs instead of printing them")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of a run (default: all CPUs)")
    parser.add_argument("--repeat", type=positive, metavar="N", help="run N times more and print the time of a run")
    parser.add_argument("--profile", action="store_true", help="print the time of each step")


def run(arguments: argparse.Namespace) -> int:
    artifact = graphc.load(arguments.file, arguments.threads)
    declared = artifact.plan["inputs"]
    if arguments.random:
        leaves = random_inputs(artifact)
    else:
        leaves = arrays.read(arguments.input, [info["name"] for info in declared])
    args, kwargs = Structure.from_json(artifact.manifest["inputs"]).unflatten(leaves)
    result = artifact.run(*args, **kwargs)
    names = [info["name"] for info in artifact.plan["outputs"]]
    outputs = dict(zip(names, Structure.from_json(artifact.manifest["outputs"]).flatten(result), strict=True))

    found: dict[str, Any] = {}
    if arguments.output is None:
        found["outputs"] = {name: value.tolist() for name, value in outputs.items()}
    else:
        _save(arguments.output, outputs)
    if arguments.repeat is not None:
        found["milliseconds"] = _times(lambda: artifact.run(*args, **kwargs), arguments.repeat)
    if arguments.profile:
        found["steps"] = [
            {"kernel": kernel, "layer": layer, "milliseconds": round(milliseconds, 6)}
            for kernel, layer, milliseconds in artifact.profile(*args, **kwargs)
        ]
    if arguments.json:
        print_json(found)
    else:
        _print(artifact, outputs, found)
    return 0


def _print(artifact: Artifact, outputs: dict[str, NDArray[Any]], found: dict[str, Any]) -> None:
    if "outputs" in found:
        for info, value in zip(artifact.plan["outputs"], outputs.values(), strict=True):
            print(f"{tensor(info)}\n{value}")
    if "milliseconds" in found:
        print(" ".join(f"{key} {value:.4g} ms" for key, value in found["milliseconds"].items()))
    if "steps" in found:
        print_columns(
            [("MS", "KERNEL", "LAYER")]
            + [(f"{step['milliseconds']:.4f}", step["kernel"], step["layer"]) for step in found["steps"]]
        )


def _times(call: Callable[[], object], repeat: int) -> dict[str, float]:
    """Milliseconds of `repeat` runs."""
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return {"median": float(np.median(times)), "least": min(times), "most": max(times)}


def _save(path: str, outputs: Mapping[str, NDArray[Any]]) -> None:
    content = io.BytesIO()
    np.savez(content, **outputs)
    container.write(path, content.getvalue())
