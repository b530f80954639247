"""What structured pruning costs: `python -m graphc.tools.pruning [MODEL]`.

A CIFAR ResNet is traced, pruned to a fraction of its multiply-accumulates, and trained for a few epochs on the JPEG
training images: the cross entropy against the labels, and the divergence from what the original says of the same
images. Images are shifted by up to four pixels and mirrored. Accuracy is over all 10,000 JPEG test images, before
pruning, after it, and after training; nothing is selected on them.

    python -m graphc.tools.pruning resnet20_jpeg --ratio 2.1 --epochs 2 --seed 0
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

import graphc
from graphc import text
from graphc.calibration import batches
from graphc.cost import macs
from graphc.graph import Graph
from graphc.passes.prune_channels import PruneChannels
from graphc.pipeline import PassContext
from graphc.progress import terminal
from graphc.tools.zoo import data
from graphc.tools.zoo.catalog import MODELS, Entry
from graphc.trainable import Trainable

BATCH = 100
RATE = 0.05
TEMPERATURE = 3.0
Progress = Callable[[str, int, int], None]


def total_macs(graph: Graph) -> int:
    """Multiply-accumulates of one image."""
    return sum(macs(graph, node) for node in graph.calls) // BATCH


def top1(graph: Graph, entry: Entry, limit: int | None) -> float:
    with torch.no_grad():
        return entry.evaluate(graph.run, limit, BATCH)


def recover(
    graph: Graph, teacher: Graph, images: Tensor, labels: Tensor, epochs: float, seed: int, progress: Progress
) -> Graph:
    """Train a graph of batches of BATCH on images [N, 3, 32, 32], normalized, and labels [N]; the same seed gives the
    same weights on the same machine.

    SGD with Nesterov's momentum; the rate rises for a fifth of the steps and falls to nought along a cosine. The loss
    is half cross entropy, half the divergence from the teacher at TEMPERATURE (Hinton et al., 2015).
    """
    generator = torch.Generator().manual_seed(seed)
    student = Trainable(graph).train()
    steps = int(epochs * (len(images) // BATCH))
    optimizer = torch.optim.SGD(student.parameters(), RATE, momentum=0.9, weight_decay=1e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=steps, pct_start=0.2, final_div_factor=1e3
    )
    order: list[Tensor] = []
    for step in range(steps):
        order = order or list(torch.randperm(len(images), generator=generator).split(BATCH))[: len(images) // BATCH]
        chosen = order.pop()
        x = augment(images[chosen], generator)
        with torch.no_grad():
            taught = F.log_softmax(teacher.run(x) / TEMPERATURE, -1)
        logits = student(x)
        told = F.log_softmax(logits / TEMPERATURE, -1)
        divergence = F.kl_div(told, taught, reduction="batchmean", log_target=True) * TEMPERATURE**2
        loss = (F.cross_entropy(logits, labels[chosen]) + divergence) / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress("training", step + 1, steps)
    return student.graph()


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to four pixels, nought coming in, and every second one mirrored."""
    count, _, height, width = images.shape
    rows, columns = (torch.randint(0, 9, (count, 1), generator=generator) + torch.arange(n) for n in (height, width))
    mirrored = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    moved = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def measure(options: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    entry = MODELS[options.model]
    graph = graphc.trace(entry.build(), entry.example_inputs(BATCH))
    pruning = PruneChannels(
        share=1 / options.ratio, importance=options.importance, minimum=options.minimum, multiple=options.multiple
    )
    context = PassContext(calibration=batches(graph, entry.calibration(1000, BATCH)), progress=progress)
    pruned = graphc.Pipeline([pruning]).run(graph, context)
    # The calibration inputs are the training images as the model takes them.
    count = len(data.labels("cifar10/jpeg_train.npz", options.images))
    images = torch.cat([inputs[0] for inputs in entry.calibration(count, BATCH)])
    labels = data.labels("cifar10/jpeg_train.npz", options.images)
    start = time.perf_counter()
    trained = recover(pruned, graph, images, labels, options.epochs, options.seed, progress)
    seconds = time.perf_counter() - start
    if options.save:
        text.save(trained, options.save)
    before = top1(graph, entry, options.limit)
    after = top1(trained, entry, options.limit)
    return {
        "model": options.model,
        "pass": str(pruning),
        "MACs": [total_macs(graph), total_macs(trained)],
        "times fewer": round(total_macs(graph) / total_macs(trained), 3),
        "parameters": [sum(tensor.numel() for tensor in each.weights.values()) for each in (graph, trained)],
        "top-1 %": round(before, 2),
        "top-1 % pruned, not trained": round(top1(pruned, entry, options.limit), 2),
        "top-1 % pruned and trained": round(after, 2),
        "points lost": round(before - after, 2),
        "epochs": options.epochs,
        "seed": options.seed,
        "seconds of training": round(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="resnet20_jpeg", choices=["resnet20_jpeg", "resnet20", "resnet56"])
    parser.add_argument("--ratio", type=float, default=2.1, help="how many times fewer multiply-accumulates")
    parser.add_argument("--importance", default="magnitude", choices=["magnitude", "taylor"])
    parser.add_argument("--multiple", type=int, default=4, help="what numbers of channels are a multiple of")
    parser.add_argument("--minimum", type=float, default=0.25, help="share of each group of channels that stays")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, help="train on the first of the training images only")
    parser.add_argument("--limit", type=int, help="test on the first of the test images only")
    parser.add_argument("--save", type=Path, help="write the trained graph, as IR text with its weights beside it")
    options = parser.parse_args()
    with terminal() as progress:
        found = measure(options, progress)
    Console().print_json(json.dumps(found))


if __name__ == "__main__":
    main()
