"""What depthwise-separable substitution costs, layer by layer: `python -m graphc.tools.separation [MODEL]`.

Each convolution of a network is replaced alone (passes/separate_convolutions.py), and the squared change of the
network's results over their square is measured on calibration images: from the SVD, and from random factors over three
seeds. No training. The two checks of papers on the substitution: the error per saved parameter is lowest for
intermediate layers, and the SVD begins nearer than chance.
"""

from __future__ import annotations

import argparse
import json
from statistics import mean
from typing import Any

from rich.console import Console

import graphc
from graphc.calibration import batches
from graphc.passes.separate_convolutions import SeparateConvolutions
from graphc.pipeline import PassContext
from graphc.progress import terminal
from graphc.tools.zoo.catalog import MODELS

SEEDS = 3


def measure(model: str, count: int, ctx: PassContext) -> dict[str, Any]:
    """Rows by layer in the network's order, and the two checks."""
    entry = MODELS[model]
    graph = graphc.trace(entry.build(), entry.example_inputs(entry.batch))
    data = batches(graph, entry.calibration(count))

    def positions(initial: Any, seed: int) -> list[Any]:
        context = PassContext(calibration=data, seed=seed, progress=ctx.progress)
        return SeparateConvolutions(initial=initial).positions(graph, context)

    best = positions("svd", 0)
    chance = [positions("random", seed) for seed in range(SEEDS)]
    rows = [
        {
            "layer": one.path,
            "parameters saved": one.saved,
            "error": one.error,
            "error, random": mean(other[place].error for other in chance),
            "error per million saved": one.error / one.saved * 1e6,
        }
        for place, one in enumerate(best)
    ]
    third = len(rows) // 3
    costs = [row["error per million saved"] for row in rows]
    parts = {"first third": costs[:third], "middle": costs[third:-third], "last third": costs[-third:]}
    return {
        "model": model,
        "layers": rows,
        "mean error per million saved": {name: mean(part) for name, part in parts.items()},
        "cheapest layer": rows[costs.index(min(costs))]["layer"],
        "layers where the SVD is nearer than every random start": sum(
            all(one.error <= other[place].error for other in chance) for place, one in enumerate(best)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="resnet20_jpeg", choices=sorted(MODELS))
    parser.add_argument("--count", type=int, default=100, help="calibration items to measure on")
    options = parser.parse_args()
    with terminal() as progress:
        found = measure(options.model, options.count, PassContext(progress=progress))
    Console().print_json(json.dumps(found))


if __name__ == "__main__":
    main()
