"""What structured pruning costs and gains: `python -m graphc.tools.pruning [MODEL]`.

A CIFAR ResNet is traced, pruned to a fraction of its multiply-accumulates, and trained for a few epochs on the JPEG
training images, products in bfloat16: half the cross entropy against the labels, half the divergence from what the
original says of the same images. Images are shifted by up to four pixels and mirrored. Accuracy is over all 10,000 JPEG
test images, before pruning, after it, and after training; the last step is kept, nothing is selected on them. The
original is itself trained in the same way (`--original`), for the training data alone may lift it. A killed run goes on
where it was; figures are written network by network.

    python -m graphc.tools.pruning resnet20_jpeg --original --epochs 5 --seeds 0 --output tools/results/pruning.json
    python -m graphc.tools.pruning resnet20_jpeg --time --output tools/results/pruning_speed.json

The second compiles both networks for one image and lets them take turns (graphc.measurement): the least nanoseconds of
every step, summed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from torch.export import Dim

import graphc
from graphc import container, text
from graphc.calibration import batches, fitting_threads
from graphc.cost import macs
from graphc.graph import Graph, concrete
from graphc.measurement import step_times
from graphc.operators.inference import infer
from graphc.passes.prune_channels import PruneChannels
from graphc.pipeline import PassContext
from graphc.progress import Progress, terminal
from graphc.tensor_type import TensorType, evaluate, symbol
from graphc.tools.zoo import data
from graphc.tools.zoo.catalog import MODELS, Entry
from graphc.training.distillation import Distillation, distill
from graphc.training.loop import Samples, Training

Figures = dict[str, Any]
BATCH = 128
RATE = 0.05
TOWARDS = Distillation(logits=0.5, labels=0.5, temperature=3.0, precision="bf16")
CALIBRATION = 512  # images that the importance is measured on


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


def top1(graph: Graph, entry: Entry, limit: int | None) -> float:
    with torch.no_grad(), fitting_threads(graph):
        return entry.evaluate(graph.run, limit)


def augmented(batch: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """The first tensor's images [N, C, H, W] each moved by up to four pixels, nought coming in, and every second one
    mirrored. The result lies channels last, in which convolutions train faster."""
    images, *rest = batch
    count, _, height, width = images.shape
    rows, columns = (torch.randint(0, 9, (count, 1), generator=generator) + torch.arange(n) for n in (height, width))
    mirrored = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    moved = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return [moved.permute(0, 3, 1, 2), *rest]


def pruning_of(options: argparse.Namespace) -> PruneChannels:
    return PruneChannels(
        share=1 / options.ratio,
        importance=options.importance,
        minimum=options.minimum,
        multiple=options.multiple,
        exclude=tuple(options.exclude),
    )


def pruned(options: argparse.Namespace, original: Graph, progress: Progress) -> Graph:
    images = MODELS[options.model].calibration(CALIBRATION, BATCH)
    context = PassContext(calibration=batches(original, images), progress=progress)
    return graphc.Pipeline([pruning_of(options)]).run(original, context)


def kept(options: argparse.Namespace, kind: str, seed: int) -> Path:
    """Where a trained graph and, beside it, its checkpoint lie."""
    name = f"{options.model}-{kind}-{options.ratio}-{options.importance}-{options.multiple}-{options.epochs}-{seed}.txt"
    return Path(options.folder, name)


def measure(options: argparse.Namespace, progress: Progress) -> Figures:
    entry = MODELS[options.model]
    original = traced(entry)
    graphs = {"pruned": pruned(options, original, progress)}
    if options.original:
        graphs["original"] = original
    # The calibration inputs are the training images as the model takes them.
    labels = data.labels("cifar10/jpeg_train.npz", options.images)
    images = torch.cat([inputs[0] for inputs in entry.calibration(len(labels), BATCH)])
    found: Figures = {
        "model": options.model,
        "pass": str(pruning_of(options)),
        "training": {"epochs": options.epochs, "batch": BATCH, "images": len(images), "rate": RATE},
        "test images": options.limit or len(data.labels("cifar10/jpeg_test.npz")),
        "original": {"top-1 %": round(top1(original, entry, options.limit), 2), **counted(original)},
        "pruned, not trained": {"top-1 %": round(top1(graphs["pruned"], entry, options.limit), 2)},
        "trained": [],
    }
    for seed in options.seeds:
        samples = Samples((images, labels), BATCH, seed, augmented)
        steps = int(options.epochs * samples.steps_per_epoch)
        for kind, graph in graphs.items():
            file = kept(options, kind, seed)
            training = Training(
                steps, RATE, "sgd", warmup=steps // 5, weight_decay=1e-4, seed=seed, interval=50,
                checkpoint=file.with_suffix(".safetensors"), what=f"{kind}, seed {seed}",
            )  # fmt: skip
            start = time.perf_counter()
            trained = distill(graph, original, samples, TOWARDS, training, progress=progress)
            seconds = time.perf_counter() - start
            text.save(trained, file)
            figures = {"graph": kind, "seed": seed, "top-1 %": round(top1(trained, entry, options.limit), 2)}
            found["trained"].append({**figures, **counted(trained), "seconds": round(seconds)})
            if options.output:
                container.write(options.output, (json.dumps(found, indent=2) + "\n").encode())
    return found


def counted(graph: Graph) -> Figures:
    widths = [tensor.shape[0] for tensor in graph.weights.values() if tensor.dim() == 4]
    stored = sum(tensor.nbytes for tensor in graph.weights.values())
    return {"MACs": total_macs(graph), "bytes": stored, "channels": widths}


def timed(options: argparse.Namespace, progress: Progress) -> Figures:
    """Nanoseconds of one image on the original and on the pruned graph, in turns, by pipeline; training changes neither
    speed nor size."""
    entry = MODELS[options.model]
    original = traced(entry)
    graphs = [original, pruned(options, original, progress)]
    found: Figures = {"model": options.model, "pass": str(pruning_of(options)), "threads": options.threads}
    for pipeline, images in (("float", None), ("int8", [*entry.calibration(64, 1)])):
        files = []
        for graph in graphs:
            with TemporaryDirectory() as folder:
                file = Path(folder, "model.graphc")
                graphc.compile(of_size(graph, 1), calibration=images, pipeline=pipeline, progress=False).save(file)
                files.append(file.read_bytes())
        before, after = (sum(times) for times in step_times(files, options.threads, options.rounds))
        found[pipeline] = {
            "ns": [round(before), round(after)],
            "times faster": round(before / after, 3),
            "file bytes": [len(content) for content in files],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="resnet20_jpeg", choices=["resnet20_jpeg", "resnet20", "resnet56"])
    parser.add_argument("--ratio", type=float, default=2.1, help="how many times fewer multiply-accumulates")
    parser.add_argument("--importance", default="magnitude", choices=["magnitude", "taylor"])
    parser.add_argument("--multiple", type=int, default=16, help="what numbers of channels are a multiple of")
    parser.add_argument("--minimum", type=float, default=0.25, help="share of each group of channels that stays")
    parser.add_argument(
        "--exclude", nargs="*", default=["linear"], help="layers that keep their channels (shell patterns)"
    )
    parser.add_argument("--epochs", type=float, default=5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--original", action="store_true", help="train the original as long, too")
    parser.add_argument("--images", type=int, help="train on the first of the training images only")
    parser.add_argument("--limit", type=int, help="test on the first of the test images only")
    parser.add_argument(
        "--folder", type=Path, default=Path.home() / ".cache/graphc/pruning", help="checkpoints, graphs"
    )
    parser.add_argument("--output", type=Path, help="where the figures are written as JSON")
    parser.add_argument("--time", action="store_true", help="measure the speed instead")
    parser.add_argument("--threads", type=int, default=1, help="with --time")
    parser.add_argument("--rounds", type=int, default=50, help="with --time")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    with terminal() as progress:
        found = timed(options, progress) if options.time else measure(options, progress)
    if options.output:
        container.write(options.output, (json.dumps(found, indent=2) + "\n").encode())
    Console().print_json(json.dumps(found))


if __name__ == "__main__":
    main()
