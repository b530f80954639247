"""Accuracy in few bits, post-training and trained: `python -m graphc.tools.low_bits [NETWORK ...]`.

Top-1 of the graph in torch, the share of images predicted as the float graph does, and the seconds that it took to get
there. Calibration and training read images that no benchmark scores. Training goes on from the checkpoint beside
`--output`. The full runs:

    python -m graphc.tools.low_bits --output tools/results/low_bits.json --methods nearest adaround block
    python -m graphc.tools.low_bits resnet20_jpeg --output tools/results/low_bits.json --methods qat float --steps 1000
    python -m graphc.tools.low_bits resnet20_jpeg --methods qat --bits W2A2 --steps 12000 6000 --learning-rate 1e-3 5e-4
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import graphc
from graphc.calibration import batches
from graphc.errors import TrainingError
from graphc.graph import Graph
from graphc.passes.quantize import Quantize
from graphc.passes.reconstruct import Reconstruct
from graphc.pipeline import CLEAN, PassContext, Pipeline
from graphc.tools import statement
from graphc.tools.statement import Known
from graphc.tools.zoo.augmentation import augmented, training_images
from graphc.tools.zoo.catalog import MODELS
from graphc.trainable import Trainable
from graphc.training.distillation import Distillation, distill
from graphc.training.loop import Samples, Training
from graphc.training.quantization import train_quantized

NETWORKS = ("resnet20_jpeg", "resnet18", "mobilenet_v2", "tiny_darknet")
TRAINED = ("resnet20_jpeg",)  # of the others there are no images to train on
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

    @cached_property
    def original(self) -> Graph:
        traced = graphc.trace(self.entry.build(), self.entry.example_inputs(self.batch))
        return Pipeline(f"{CLEAN},cross_layer_equalization" if self.options.equalize else CLEAN).run(traced)

    @cached_property
    def calibration(self) -> list[list[Tensor]]:
        return batches(self.original, self.entry.calibration(self.options.calibration, self.batch))

    @cached_property
    def judged(self) -> tuple[float, Tensor]:
        """Of the float graph."""
        return self.judge(self.original.run)

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

        top1 = self.entry.evaluate(run, self.options.limit, self.batch)
        return top1, torch.cat(found)

    @cached_property
    def samples(self) -> Samples:
        """The training images, moved and mirrored, and their labels."""
        images = training_images(self.entry, self.options.training)
        return Samples(images, self.batch, self.options.seed, augmented)

    def quantized(self, method: str, bits: tuple[int, int]) -> Graph:
        options, progress = self.options, self.options.progress
        ctx = PassContext(calibration=self.calibration, seed=options.seed, progress=progress)
        if method in ("adaround", "block"):
            granularity = "layer" if method == "adaround" else "block"
            item = Reconstruct(*bits, granularity=granularity, iterations=options.iterations)  # type: ignore[arg-type]
            return Pipeline([item]).run(self.original, ctx)
        start = Pipeline([Quantize(*bits)]).run(self.original, ctx) if method != "float" else self.original
        if method == "nearest":
            return start
        if len(options.steps) != len(options.learning_rate):
            raise TrainingError("--steps and --learning-rate take as many values, one for each phase of training")
        training = [self.phase(method, bits, place) for place in range(len(options.steps))]
        towards = Distillation(logits=0.5, labels=0.5, precision="bf16")
        if method == "float":
            student = Trainable(start)
            for phase in training:
                distill(student, start, self.samples, towards, phase, progress=progress)
            return student.graph()
        return train_quantized(
            self.original, start, self.samples, training, towards, progress=progress, precision=torch.bfloat16
        )

    def phase(self, method: str, bits: tuple[int, int], place: int) -> Training:
        options = self.options
        steps, rate, checkpoint = options.steps[place], options.learning_rate[place], None
        if options.output is not None:
            before = "+".join(map(str, options.steps[: place + 1]))
            stem = f"{self.name}-{method}-w{bits[0]}a{bits[1]}-{before}-{options.seed}.safetensors"
            checkpoint = (options.checkpoints or options.output.parent) / stem
        return Training(
            steps, rate, warmup=steps // 20, seed=options.seed, checkpoint=checkpoint, interval=100,
            what=f"{self.name} {method} W{bits[0]}A{bits[1]}",
        )  # fmt: skip

    def key(self, method: str, bits: tuple[int, int]) -> str:
        options, key = self.options, f"{method} W{bits[0]}A{bits[1]}"
        if method in ("adaround", "block"):
            return f"{key}, {options.iterations} iterations, seed {options.seed}"
        if method in ("qat", "float"):
            key += f", {'+'.join(map(str, options.steps))} steps, seed {options.seed}"
            return key + statement.apart(options, "learning_rate", "training")
        return key

    def row(self, method: str, bits: tuple[int, int]) -> dict[str, Any]:
        start = time.perf_counter()
        graph = self.quantized(method, bits)
        seconds = time.perf_counter() - start
        (expected, original), (top1, predicted) = self.judged, self.judge(graph.run)
        return {
            "float top-1 %": round(expected, 3),
            "top-1 %": round(top1, 3),
            "points lost": round(expected - top1, 3),
            "agreement %": round(100 * float((predicted == original).double().mean()), 2),
            "images": len(predicted),
            "calibration images": len(self.calibration) * self.batch,
            "batch": self.batch,
            "seconds": round(seconds, 1),
        }


def measure(name: str, options: argparse.Namespace, known: Known) -> None:
    study = Study(name, options)
    for method in options.methods:
        for bits in BITS[method]:
            wanted = not options.bits or f"W{bits[0]}A{bits[1]}" in options.bits
            if wanted and (name in TRAINED or method not in ("qat", "float")):
                known.once(study.key(method, bits), study.row, method, bits)


FIGURES = {name: partial(measure, name) for name in NETWORKS}


def main(arguments: Sequence[str] | None = None) -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--methods", nargs="+", choices=BITS, default=list(BITS))
        parser.add_argument("--bits", nargs="+", help="such as W4A4: these only")
        parser.add_argument("--equalize", action="store_true", help="the layers with one another, before quantizing")
        parser.add_argument("--calibration", type=int, default=300, help="images")
        parser.add_argument("--batch", type=int, help="images at once; fewer make an iteration of the methods shorter")
        parser.add_argument("--training", type=int, default=50_000, help="images")
        parser.add_argument("--iterations", type=int, default=500, help="of each layer or block")
        parser.add_argument("--steps", type=int, nargs="+", default=[1000], help="of each phase of training")
        parser.add_argument("--learning-rate", type=float, nargs="+", default=[1e-3], help="of each phase of training")
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--checkpoints", type=Path, help="a folder; else that of --output")

    shared = ("calibration", "batch", "equalize")
    return statement.main("graphc.tools.low_bits", __doc__, FIGURES, arguments, add, shared)


if __name__ == "__main__":
    sys.exit(main())
