"""What structured pruning costs and gains: `python -m graphc.tools.pruning [NAME ...]`.

A CIFAR ResNet is traced, pruned to a fraction of its multiply-accumulates, and trained for a few epochs on the JPEG
training images, products in bfloat16: half the cross entropy against the labels, half the divergence from what the
original says of the same images. Images are shifted by up to four pixels and mirrored. Accuracy is over all 10,000 JPEG
test images, before pruning, after it, and after training; the last step is kept, nothing is selected on them. The
original is itself trained in the same way (`--original`), for the training data alone may lift it. A killed run goes on
where it was.

    python -m graphc.tools.pruning resnet20_jpeg speed --original --output tools/results/pruning.json

`speed` compiles both versions of `resnet20_jpeg` for one image and lets them take turns (graphc.measurement): the least
nanoseconds of every step, summed. Training changes neither speed nor size.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.export import Dim

import graphc
from graphc import text
from graphc.calibration import batches, fitting_threads
from graphc.cost import macs
from graphc.graph import Graph, concrete
from graphc.measurement import step_times
from graphc.operators.inference import infer
from graphc.passes.prune_channels import PruneChannels
from graphc.pipeline import PassContext
from graphc.progress import Progress, silent
from graphc.tensor_type import TensorType, evaluate, symbol
from graphc.tools import statement
from graphc.tools.statement import Known
from graphc.tools.zoo.augmentation import augmented, training_images
from graphc.tools.zoo.catalog import MODELS, Entry
from graphc.training.distillation import Distillation, distill
from graphc.training.loop import Samples, Training

Figures = dict[str, Any]
NETWORKS = ("resnet20_jpeg", "resnet20", "resnet56")
BATCH = 128
RATE = 0.05
TOWARDS = Distillation(logits=0.5, labels=0.5, temperature=3.0, precision="bf16")
CALIBRATION = 512  # images that the importance is measured on
# Of ResNet-20, unless said: numbers of channels that fill vectors, and the classes stay.
HALVED = PruneChannels(share=1 / 2.1, importance="magnitude", minimum=0.25, multiple=16, exclude=("linear",))


def traced(entry: Entry) -> Graph:
    """The network for any number of images."""
    return graphc.trace(entry.build(), entry.example_inputs(4), dynamic_shapes=({0: Dim("batch", min=1, max=1024)},))


def of_size(graph: Graph, batch: int) -> Graph:
    """The same graph for so many images and no others."""
    result = graph.clone()
    sizes = {symbol(name): batch for name in graph.symbols}
    result.symbols.clear()
    for node in result:
        if node.op == "placeholder":
            kind: TensorType = node.meta["type"]
            node.meta["type"] = TensorType(tuple(evaluate(size, sizes) for size in kind.shape), kind.dtype)
        elif node.op == "call_function":
            node.args, node.kwargs = concrete((node.args, dict(node.kwargs)), lambda used: used, sizes)
            node.meta["type"] = infer(node, {})
    return result


def total_macs(graph: Graph) -> int:
    """Multiply-accumulates of one image."""
    return sum(macs(graph, node) for node in graph.calls)


def pruning_of(options: argparse.Namespace) -> PruneChannels:
    return PruneChannels(
        share=1 / options.ratio,
        importance=options.importance,
        minimum=options.minimum,
        multiple=options.multiple,
        exclude=tuple(options.exclude),
    )


def pruned(name: str, original: Graph, item: PruneChannels = HALVED, progress: Progress = silent) -> Graph:
    images = MODELS[name].calibration(CALIBRATION, BATCH)
    context = PassContext(calibration=batches(original, images), progress=progress)
    return graphc.Pipeline([item]).run(original, context)


def judged(graph: Graph, entry: Entry, limit: int | None) -> Figures:
    """MACs are those of one image, bytes those of all weights."""
    with torch.no_grad(), fitting_threads(graph):
        top1 = entry.evaluate(graph.run, limit)
    return {
        "top-1 %": round(top1, 2),
        "MACs": total_macs(graph),
        "bytes": sum(tensor.nbytes for tensor in graph.weights.values()),
        "channels": [tensor.shape[0] for tensor in graph.weights.values() if tensor.dim() == 4],
    }


def accuracy(name: str, options: argparse.Namespace, known: Known) -> None:
    entry = MODELS[name]
    original = traced(entry)
    graphs = {"pruned": pruned(name, original, pruning_of(options), options.progress), "original": original}
    known["pass"] = str(pruning_of(options))
    for kind, graph in graphs.items():
        known.once(kind, judged, graph, entry, options.limit)
    for seed in options.seeds:
        for kind in graphs if options.original else ("pruned",):
            key = f"{kind}, {options.epochs:g} epochs, seed {seed}"
            if key not in known:
                start = time.perf_counter()
                graph = trained(name, kind, graphs[kind], original, seed, options)
                seconds = time.perf_counter() - start
                known[key] = judged(graph, entry, options.limit) | {"seconds": round(seconds)}


def trained(name: str, kind: str, graph: Graph, teacher: Graph, seed: int, options: argparse.Namespace) -> Graph:
    """The trained graph, which is also kept beside its checkpoint."""
    samples = Samples(training_images(MODELS[name], options.images), BATCH, seed, augmented)
    steps = int(options.epochs * samples.steps_per_epoch)
    file = f"{name}-{kind}-{options.ratio}-{options.importance}-{options.multiple}-{options.epochs}-{seed}.txt"
    place = Path(options.folder, file)
    place.parent.mkdir(parents=True, exist_ok=True)
    training = Training(
        steps, RATE, "sgd", warmup=steps // 5, weight_decay=1e-4, seed=seed, interval=50,
        checkpoint=place.with_suffix(".safetensors"), what=f"{kind}, seed {seed}",
    )  # fmt: skip
    result = distill(graph, teacher, samples, TOWARDS, training, progress=options.progress)
    text.save(result, place)
    return result


def speed(options: argparse.Namespace, known: Known) -> None:
    entry = MODELS["resnet20_jpeg"]
    original = traced(entry)
    graphs = [
        of_size(graph, 1)
        for graph in (original, pruned("resnet20_jpeg", original, pruning_of(options), options.progress))
    ]
    for pipeline, images in (("float", None), ("int8", [*entry.calibration(64, 1)])):
        known.once(f"{pipeline}, threads {options.threads}", timed, graphs, pipeline, images, options)


def timed(graphs: Sequence[Graph], pipeline: str, images: Sequence[Any] | None, options: argparse.Namespace) -> Figures:
    """Of one image, by the original and by the pruned graph."""
    files = []
    for graph in graphs:
        with TemporaryDirectory() as folder:
            file = Path(folder, "model.graphc")
            graphc.compile(graph, calibration=images, pipeline=pipeline, progress=False).save(file)
            files.append(file.read_bytes())
    before, after = (sum(times) for times in step_times(files, options.threads, options.limit or 50))
    return {
        "ns, original": round(before),
        "ns, pruned": round(after),
        "times faster": round(before / after, 3),
        "file bytes, original": len(files[0]),
        "file bytes, pruned": len(files[1]),
    }


FIGURES: dict[str, statement.Measure] = {**{name: partial(accuracy, name) for name in NETWORKS}, "speed": speed}


def main(arguments: Sequence[str] | None = None) -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--ratio", type=float, default=2.1, help="how many times fewer multiply-accumulates")
        parser.add_argument("--importance", default=HALVED.importance, choices=["magnitude", "taylor"])
        parser.add_argument(
            "--multiple", type=int, default=HALVED.multiple, help="what numbers of channels are a multiple of"
        )
        parser.add_argument(
            "--minimum", type=float, default=HALVED.minimum, help="share of each group of channels that stays"
        )
        parser.add_argument(
            "--exclude",
            nargs="*",
            default=list(HALVED.exclude),
            help="layers that keep their channels (shell patterns)",
        )
        parser.add_argument("--epochs", type=float, default=5.0)
        parser.add_argument("--seeds", type=int, nargs="+", default=[0])
        parser.add_argument("--original", action="store_true", help="train the original as long, too")
        parser.add_argument("--images", type=int, help="train on the first of the training images only")
        parser.add_argument(
            "--folder", type=Path, default=Path.home() / ".cache/graphc/pruning", help="checkpoints, graphs"
        )
        parser.add_argument("--threads", type=int, default=1, help="of speed")

    shared = ("ratio", "importance", "multiple", "minimum", "exclude", "images")
    return statement.main("graphc.tools.pruning", __doc__, FIGURES, arguments, add, shared)


if __name__ == "__main__":
    sys.exit(main())
