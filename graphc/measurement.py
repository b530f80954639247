"""Measured times of compiled models: needs neither torch nor TVM, so that it runs on the device as well.

Jobs are pure functions of bytes: any `concurrent.futures.Executor` may run them somewhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphc.artifact import Artifact
from graphc.structure import Structure


def step_times(files: Sequence[bytes], threads: int | None = None, rounds: int = 20) -> list[list[float]]:
    """The least nanoseconds of every step (those of a run, in the plan's order) of each artifact, on random inputs.

    files: contents of artifact files. They take turns in one process, each with an untimed run before its timed one,
    so that what disturbs the machine disturbs all of them alike.
    """
    artifacts = [Artifact(content, threads) for content in files]
    calls = [Structure.from_json(item.manifest["inputs"]).unflatten(random_inputs(item)) for item in artifacts]
    best: list[NDArray[np.float64]] = [np.full(0, np.inf)] * len(artifacts)
    for turn in range(rounds):
        for place, (artifact, (args, kwargs)) in enumerate(zip(artifacts, calls, strict=True)):
            artifact.run(*args, **kwargs)
            times = np.array([milliseconds * 1e6 for *_, milliseconds in artifact.profile(*args, **kwargs)])
            best[place] = times if turn == 0 else np.minimum(best[place], times)
    return [times.tolist() for times in best]


def random_inputs(artifact: Artifact) -> list[NDArray[Any]]:
    """Inputs of the declared types, always the same.

    Floats are standard normal; integers 0 or 1, which any vocabulary has; dynamic sizes 2, or the nearest legal one.
    """
    generator = np.random.default_rng(0)
    sizes = {s["name"]: min(max(s["minimum"], 2), s["maximum"]) for s in artifact.plan["symbols"]}
    leaves = []
    for info in artifact.plan["inputs"]:
        shape = [_size(size, sizes) for size in info["shape"]]
        if info["dtype"] in ("f64", "f32", "f16", "bf16"):
            leaves.append(generator.standard_normal(shape).astype(_dtype(info["dtype"])))
        else:
            leaves.append(generator.integers(0, 2, shape).astype(_dtype(info["dtype"])))
    return leaves


def _size(size: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(size, int) or size in sizes:
        return sizes[size] if isinstance(size, str) else size
    from graphc.sizes import parse_size
    from graphc.tensor_type import evaluate, symbol  # a size such as "2*batch" needs sympy, and this module torch

    return int(evaluate(parse_size(size), {symbol(name): value for name, value in sizes.items()}))


def _dtype(name: str) -> np.dtype[Any]:
    """f32 -> float32."""
    if name == "bf16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype({"f": "float", "i": "int", "u": "uint"}[name[0]] + name[1:] if name != "bool" else name)
