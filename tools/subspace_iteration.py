"""Randomized subspace iteration against the exact decomposition (the format low_rank; papers.md section 8).

    python -m graphc.tools.subspace_iteration --output tools/results/subspace_iteration.json

Rank min(rows, columns) / 8 of random matrices with the singular values i^-a, and of real weights, by q = 0, 1, 2 and 4
iterations: errors over the least there are, what the factors hold of the energy that the exact ones hold (plain random
projection, q = 0, is biased low), and processor time over that of the exact decomposition, on one
thread. "broken" names what was promised of q = 2 and does not hold: it must be empty.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from graphc.formats.low_rank import LowRank
from graphc.tools import statement
from graphc.tools.statement import Known
from graphc.tools.zoo.catalog import MODELS

Figures = dict[str, Any]
REPEATS = 3  # of which the least time counts
# Weights of the zoo.
WEIGHTS = {
    "llama_char105": "layers.0.w1.weight",
    "minilm": "encoder.layer.0.intermediate.dense.weight",
    "resnet18": "layer4.0.conv2.weight",
}


def iteration(known: MutableMapping[str, Any], name: str, matrix: Tensor) -> None:
    """Rank min(rows, columns) / 8 by q iterations, relative to the exact decomposition; times are the processor's."""
    if name in known:
        return
    rank = min(matrix.shape) // 8
    start = time.process_time()
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    exact = time.process_time() - start
    best = matrix - (u[:, :rank] * values[:rank]) @ v[:rank]
    for q in (0, 1, 2, 4):
        form, times = LowRank(rank, iterations=q), []
        for _ in range(REPEATS):
            start = time.process_time()
            parts = form.encode(matrix)
            times.append(time.process_time() - start)
        left, right = parts["left"], parts["right"]
        error = matrix - left @ right
        found = torch.linalg.svdvals(torch.linalg.qr(left).R @ right)
        known[f"{name}, q={q}"] = {
            "Frobenius": float(error.norm() / best.norm()),
            "spectral": float(torch.linalg.matrix_norm(error, 2) / values[rank]),
            "energy found": float(found.square().sum() / values[:rank].square().sum()),
            "last singular value": float(found[rank - 1] / values[rank - 1]),
            "time": min(times) / exact,
        }
    two, none = known[f"{name}, q=2"], known[f"{name}, q=0"]
    checks = {
        "q=2: Frobenius <= 1.03": two["Frobenius"] <= 1.03,
        "q=2: time <= 1/5": two["time"] <= 0.2,
        "q=2 < q=0, spectral": two["spectral"] < none["spectral"],
        "q=0 finds less energy than q=2": none["energy found"] < two["energy found"],
    }
    broken = ", ".join(check for check, holds in checks.items() if not holds)
    known[name] = {"rank": rank, "seconds of the exact one": exact, "broken": broken}


def spectrum(rows: int, columns: int, power: float) -> Tensor:
    """A random matrix with singular values i^-power."""
    generator = torch.Generator().manual_seed(0)
    least = min(rows, columns)
    u, v = (torch.linalg.qr(torch.randn(size, least, generator=generator)).Q for size in (rows, columns))
    found: Tensor = (u * torch.arange(1.0, least + 1) ** -power) @ v.t()
    return found


def random(options: argparse.Namespace, known: Known) -> None:
    torch.set_num_threads(1)
    for rows, columns in ((options.size, options.size), (options.size, 2 * options.size)):
        for power in (0.25, 0.5, 1.0)[: options.limit]:
            iteration(known, f"{rows}x{columns}, i^-{power}", spectrum(rows, columns, power))


def zoo(options: argparse.Namespace, known: Known) -> None:
    torch.set_num_threads(1)
    for model, name in list(WEIGHTS.items())[: options.limit]:
        weight = dict(MODELS[model].build().named_parameters())[name]
        iteration(known, f"{model} {name}", weight.detach().flatten(1))


FIGURES = {"random": random, "zoo": zoo}


def main(arguments: Sequence[str] | None = None) -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--size", type=int, default=1024, help="of random matrices, size x size and size x 2 size")

    return statement.main("graphc.tools.subspace_iteration", __doc__, FIGURES, arguments, add)


if __name__ == "__main__":
    sys.exit(main())
