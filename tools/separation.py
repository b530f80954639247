"""What depthwise-separable substitution costs: `python -m graphc.tools.separation [NAME ...]`.

layers       each convolution of a network is replaced alone (passes/separate_convolutions.py), and the squared change
             of the network's results over their square is measured on calibration images: from the SVD, and from random
             factors over three seeds. No training.
autoencoder  the replica of DSC-JSCC (arXiv:2604.22338): an autoencoder of 5 + 5 convolutions sends 32 x 32 images as
             512 numbers over a channel of 10 dB. Each layer is replaced alone, from the SVD and at random, and all of
             the network trained on, as long as the original itself is. PSNR on test images, the same noise for all.

The two checks, as inequalities with their figures: what is lost for each parameter saved is least for intermediate
layers, those that face neither the image nor the channel; the SVD is no worse a beginning than chance. A check "holds"
where "less" is at most "more"; means and checks are of all seeds in the file.

    python -m graphc.tools.separation --seeds 0 1 2 --output tools/results/separation.json
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

import graphc
from graphc.calibration import batches, fitting_threads
from graphc.convolution_factors import saved_parameters
from graphc.graph import Graph
from graphc.passes.separate_convolutions import Initial, SeparateConvolutions, separate
from graphc.pipeline import PassContext
from graphc.progress import Progress
from graphc.tools import statement
from graphc.tools.statement import Known
from graphc.tools.zoo import data
from graphc.tools.zoo.catalog import MODELS
from graphc.trainable import Trainable
from graphc.training.loop import Batch, Samples, Training, train

Figures = dict[str, Any]
BATCH = 32
DECIBELS = 10.0  # of the channel: power of the signal over that of the noise


def check(text: str, less: float, more: float) -> Figures:
    return {text: {"less": less, "more": more, "holds": less <= more}}


# -- without training -----------------------------------------------------------------------------


def layers(options: argparse.Namespace, known: Known) -> None:
    entry = MODELS[options.model]
    graph = graphc.trace(entry.build(), entry.example_inputs(entry.batch))
    images = batches(graph, entry.calibration(options.limit or 100))

    def errors(initial: Initial, seed: int) -> list[tuple[str, int, float]]:
        """Path, parameters saved and error of each layer."""
        context = PassContext(calibration=images, seed=seed, progress=options.progress)
        found = SeparateConvolutions(initial=initial).positions(graph, context)
        return [(one.path, one.saved, one.error) for one in found]

    best = known.once("svd | errors", errors, "svd", 0)
    for seed in options.seeds:
        known.once(f"random, seed {seed} | errors", errors, "random", seed)
    chance = [[error for _, _, error in found] for key, found in known.items() if key.startswith("random, seed ")]
    costs, nearer = [], 0
    for (path, saved, error), others in zip(best, zip(*chance, strict=True), strict=True):
        costs.append(error / saved * 1e6)
        nearer += error > min(others)
        known[path] = {
            "parameters saved": saved,
            "error": error,
            "error, random": mean(others),
            "error per million saved": costs[-1],
        }
    known.update(_intermediate("error per million parameters saved", costs, [0, len(best) - 1]))
    known.update(check(f"layers where a random start is nearer than the SVD, of {len(best)}", nearer, 0))


def _intermediate(what: str, costs: Sequence[float], outer: Sequence[int]) -> Figures:
    inner = [cost for place, cost in enumerate(costs) if place not in outer]
    rest = [costs[place] for place in outer]
    means = check(f"mean {what}, intermediate against outer layers", mean(inner), mean(rest))
    return means | check(f"least {what}, intermediate against outer layers", min(inner), min(rest))


# -- the autoencoder ------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    """Images [N, 3, 32, 32] from 0 to 1 and noise [N, 8, 8, 8] of variance 1 -> images."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(
            [
                nn.Conv2d(3, 16, 5, 2, padding=2),
                nn.Conv2d(16, 32, 5, 2, padding=2),
                nn.Conv2d(32, 32, 5, padding=2),
                nn.Conv2d(32, 32, 5, padding=2),
                nn.Conv2d(32, 8, 5, padding=2),
            ]
        )
        self.decoder = nn.ModuleList(
            [
                nn.Conv2d(8, 32, 5, padding=2),
                nn.Conv2d(32, 32, 5, padding=2),
                nn.Conv2d(32, 32, 5, padding=2),
                nn.Conv2d(32, 16, 5, padding=2),
                nn.Conv2d(16, 3, 5, padding=2),
            ]
        )

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        x = images - 0.5
        for place, layer in enumerate(self.encoder):
            x = layer(x) if place == 0 else layer(torch.relu(x))
        power = x.square().mean((1, 2, 3), keepdim=True)
        x = x / (power + 1e-8).sqrt() + noise * 10 ** (-DECIBELS / 20)
        for place, layer in enumerate(self.decoder):
            x = layer(x) if place == 0 else layer(torch.relu(x))
            if place in (2, 3):
                x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return torch.sigmoid(x)


OUTER = [0, 4, 5, 9]  # the layers at the image and at the channel


def replica(
    images: Tensor, test: Tensor, steps: int, more: int, seed: int, progress: Progress
) -> tuple[float, Figures]:
    """The PSNR of the original, and by layer what is lost where it is replaced; each is trained `more` steps after the
    original's `steps`.

    images, test: [N, 3, 32, 32] from 0 to 1.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Autoencoder().eval()
    batch = Dim("batch", min=1, max=1024)
    example = (images[:4], torch.zeros(4, 8, 8, 8))
    start = graphc.trace(model, example, dynamic_shapes=({0: batch}, {0: batch}))
    noise = torch.randn(len(test), 8, 8, 8, generator=torch.Generator().manual_seed(seed))

    def trained(graph: Graph, count: int, rate: float, what: str) -> Graph:
        module = Trainable(graph)

        def loss(given: Batch) -> Tensor:
            (x,) = given
            return nn.functional.mse_loss(module(x, torch.randn(len(x), 8, 8, 8)), x)

        samples = Samples((images,), BATCH, seed)
        train(module, loss, samples, Training(count, rate, seed=seed, what=what), progress=progress)
        return module.graph()

    def psnr(graph: Graph) -> float:
        with torch.no_grad():
            return -10 * math.log10(float(nn.functional.mse_loss(graph.run(test, noise), test)))

    with fitting_threads(start):
        original = trained(start, steps, 2e-3, f"autoencoder, seed {seed}")
        longer = psnr(trained(original, more, 1e-3, "original, trained on"))
        rows: Figures = {}
        for node in original.calls:
            weight = original.weight(node.args[1]) if node.target is torch.ops.aten.convolution.default else None
            if weight is None:
                continue
            path, saved = node.meta["path"], saved_parameters(weight)
            row = rows[path] = {"parameters saved": saved}
            for initial in ("svd", "random"):
                replaced = separate(original, [node.name], initial, seed)
                row[f"dB lost, {initial}, not trained"] = longer - psnr(replaced)
                row[f"dB lost, {initial}"] = longer - psnr(trained(replaced, more, 1e-3, f"{path} from {initial}"))
    return longer, rows


def autoencoder(options: argparse.Namespace, known: Known) -> None:
    images, test = (
        data.jpeg_images(f"cifar10/jpeg_{name}.npz", count) / 255
        for name, count in (("train", 10_000), ("test", options.limit or 1000))
    )
    for seed in options.seeds:
        if f"seed {seed}" not in known:
            longer, rows = replica(images, test, options.steps, options.more, seed, options.progress)
            known.update({f"seed {seed}, {path}": row for path, row in rows.items()})
            known[f"seed {seed}"] = {"PSNR of the original, trained on": longer}  # the last: all rows are there
    seeds = [key for key in known if key.startswith("seed ") and ", " not in key]
    known.update(checks([[row for key, row in known.items() if key.startswith(f"{seed}, ")] for seed in seeds]))


def checks(runs: Sequence[Sequence[Figures]]) -> Figures:
    """Over the seeds' means."""
    lost = {
        initial: [mean(rows[place][f"dB lost, {initial}"] for rows in runs) for place in range(len(runs[0]))]
        for initial in ("svd", "random")
    }
    saved = [row["parameters saved"] for row in runs[0]]
    costs = [1000 * loss / count for loss, count in zip(lost["svd"], saved, strict=True)]
    text = "mean dB lost over the layers, from the SVD against from chance"
    svd = check(text, mean(lost["svd"]), mean(lost["random"]))
    return _intermediate("dB lost per thousand parameters saved", costs, OUTER) | svd


FIGURES = {"layers": layers, "autoencoder": autoencoder}


def main(arguments: Sequence[str] | None = None) -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--model", default="resnet20_jpeg", choices=sorted(MODELS), help="of layers")
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        parser.add_argument("--steps", type=int, default=500, help="of the autoencoder's training")
        parser.add_argument("--more", type=int, default=60, help="steps after each substitution")

    shared = ("model", "steps", "more")
    return statement.main("graphc.tools.separation", __doc__, FIGURES, arguments, add, shared)


if __name__ == "__main__":
    sys.exit(main())
