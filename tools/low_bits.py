"""Accuracy in few bits, post-training and trained, row by row: `python -m graphc.tools.low_bits`.

For each network of the zoo: top-1 of the graph in torch, the share of images predicted as the float graph does, and the
seconds that it took to get there. Calibration and training read images that no benchmark scores. `--images`,
`--iterations` and `--steps` make a run shorter; each row states its own. What `--output` has already is not run again,
and training goes on from the checkpoint beside it. The full runs:

    python -m graphc.tools.low_bits --output tools/results/low_bits.json --methods nearest adaround block
    python -m graphc.tools.low_bits --output tools/results/low_bits.json --methods qat float --steps 5000 --seed 0
    python -m graphc.tools.low_bits --output tools/results/low_bits.json --methods nearest adaround block
        --network resnet18 mobilenet_v2 tiny_darknet
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import graphc
from graphc import container
from graphc.calibration import batches
from graphc.graph import Graph
from graphc.passes.quantize import Quantize
from graphc.passes.reconstruct import Reconstruct
from graphc.pipeline import CLEAN, PassContext, Pipeline
from graphc.progress import Progress, terminal
from graphc.tools.pruning import augmented
from graphc.tools.zoo import data
from graphc.tools.zoo.catalog import MODELS
from graphc.trainable import Trainable
from graphc.training.distillation import Distillation, distill
from graphc.training.loop import Samples, Training
from graphc.training.quantization import train_quantized

NETWORKS = ("resnet20_jpeg", "resnet18", "mobilenet_v2", "tiny_darknet")
LABELS = {"resnet20_jpeg": "cifar10/jpeg_train.npz"}  # of the images that calibration reads too
# Of weights and of activations, for each method: training is for what the others lose most in. "float" is the float
# network trained as "qat" trains, for what training alone brings.
BITS = {
    "nearest": ((8, 8), (4, 8), (4, 4)),
    "adaround": ((4, 8), (4, 4)),
    "block": ((4, 8), (4, 4)),
    "qat": ((4, 4), (2, 2)),
    "float": ((32, 32),),
}


class Study:
    """One network, its calibration data, and the float graph's predictions."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.name, self.entry, self.options = name, MODELS[name], options
        self.batch = options.batch or self.entry.batch
        traced = graphc.trace(self.entry.build(), self.entry.example_inputs(self.batch))
        self.original = Pipeline(f"{CLEAN},cross_layer_equalization" if options.equalize else CLEAN).run(traced)
        self.calibration = batches(self.original, self.entry.calibration(options.calibration, self.batch))
        self.top1, self.predicted = self.judge(self.original.run)

    def judge(self, model: Callable[[Tensor], Tensor]) -> tuple[float, Tensor]:
        """Top-1 in % of a function from a batch of images to logits, and its predictions, int64 [N]."""
        found: list[Tensor] = []

        def run(x: Tensor) -> Tensor:
            missing = self.batch - len(x)  # the graph takes whole batches only
            whole = torch.cat([x, x[:1].expand(missing, *x.shape[1:])]) if missing else x
            with torch.no_grad():
                logits = model(whole.contiguous(memory_format=torch.channels_last))[: len(x)]
            found.append(logits.argmax(-1))
            return logits

        top1 = self.entry.evaluate(run, self.options.images, self.batch)
        return top1, torch.cat(found)

    @cached_property
    def samples(self) -> Samples:
        """The training images, moved and mirrored, and their labels."""
        images = torch.cat([x for (x,) in self.entry.calibration(self.options.training, self.batch)])
        labels = data.labels(LABELS[self.name], len(images))
        return Samples((images, labels), self.batch, self.options.seed, augmented)

    def quantized(self, method: str, bits: tuple[int, int], progress: Progress) -> Graph:
        options = self.options
        ctx = PassContext(calibration=self.calibration, seed=options.seed, progress=progress)
        if method in ("adaround", "block"):
            granularity = "layer" if method == "adaround" else "block"
            item = Reconstruct(*bits, granularity=granularity, iterations=options.iterations)  # type: ignore[arg-type]
            return Pipeline([item]).run(self.original, ctx)
        start = Pipeline([Quantize(*bits)]).run(self.original, ctx) if method != "float" else self.original
        if method == "nearest":
            return start
        checkpoint = None
        if options.output is not None:
            stem = f"{self.name}-{method}-w{bits[0]}a{bits[1]}-{options.steps}-{options.seed}.safetensors"
            checkpoint = (options.checkpoints or options.output.parent) / stem
        training = Training(
            options.steps, options.learning_rate, warmup=options.steps // 20, seed=options.seed, checkpoint=checkpoint,
            interval=100, what=f"{self.name} {method} W{bits[0]}A{bits[1]}",
        )  # fmt: skip
        towards = Distillation(logits=0.5, labels=0.5)
        if method == "float":
            return distill(Trainable(start), start, self.samples, towards, training, progress=progress)
        return train_quantized(
            self.original, start, self.samples, training, towards, progress=progress, precision=torch.bfloat16
        )

    def identity(self, method: str, bits: tuple[int, int]) -> dict[str, Any]:
        """What is run: two rows that agree in this are one."""
        options = self.options
        trained, learned = method in ("qat", "float"), method in ("adaround", "block")
        return {
            "network": self.name,
            "method": method + (" equalized" if options.equalize else ""),
            "bits": f"W{bits[0]}A{bits[1]}",
            "seed": options.seed,
            "images": len(self.predicted),
            "calibration images": len(self.calibration) * self.batch,
            "batch": self.batch,
            "iterations": options.iterations if learned else 0,
            "steps": options.steps if trained else 0,
            "learning rate": options.learning_rate if trained else 0,
        }

    def row(self, method: str, bits: tuple[int, int], progress: Progress) -> dict[str, Any]:
        start = time.perf_counter()
        graph = self.quantized(method, bits, progress)
        seconds = time.perf_counter() - start
        top1, predicted = self.judge(graph.run)
        return self.identity(method, bits) | {
            "float top-1 %": round(self.top1, 3),
            "top-1 %": round(top1, 3),
            "points lost": round(self.top1 - top1, 3),
            "agreement %": round(100 * float((predicted == self.predicted).double().mean()), 2),
            "seconds": round(seconds, 1),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m graphc.tools.low_bits", description=__doc__)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=["resnet20_jpeg"])
    parser.add_argument("--methods", nargs="+", choices=BITS, default=list(BITS))
    parser.add_argument("--bits", nargs="+", help="such as W4A4: these only")
    parser.add_argument("--equalize", action="store_true", help="the layers with one another, before quantizing")
    parser.add_argument("--images", type=int, help="scored; all of them where it is not given")
    parser.add_argument("--calibration", type=int, default=300, help="images")
    parser.add_argument("--batch", type=int, help="images at once; fewer make an iteration of the methods shorter")
    parser.add_argument("--training", type=int, default=50_000, help="images")
    parser.add_argument("--iterations", type=int, default=500, help="of each layer or block")
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON file, to which rows are added")
    parser.add_argument("--checkpoints", type=Path, help="a folder; else that of --output")
    options = parser.parse_args(arguments)
    for name in options.network:
        study = Study(name, options)
        print(name, f"{len(study.predicted)} images, float top-1 {study.top1:.3f} %", flush=True)
        for method in options.methods:
            if method in ("qat", "float") and name not in LABELS:
                continue
            for bits in BITS[method]:
                wanted = not options.bits or f"W{bits[0]}A{bits[1]}" in options.bits
                identity = study.identity(method, bits)
                if not wanted or any(identity.items() <= row.items() for row in known(options.output)):
                    continue
                with terminal() as progress:
                    row = study.row(method, bits, progress)
                print("  ", "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                if options.output is not None:
                    rows = [*known(options.output), row]  # read anew: other runs may add to the same file
                    container.write(options.output, (json.dumps(rows, indent=1) + "\n").encode())
    return 0


def known(output: Path | None) -> list[dict[str, Any]]:
    """The rows that a file has."""
    found: list[dict[str, Any]] = [] if output is None or not output.exists() else json.loads(output.read_text())
    return found


if __name__ == "__main__":
    sys.exit(main())
