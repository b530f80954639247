"""What training brings back: ResNet-20 at about one bit a weight, and the checks of codebooks and penalties on digits.

    python -m graphc.tools.recovery vectors sparsity --seeds 0 1 2 3 4 5 6 7 8 --output tools/results/recovery.json
    python -m graphc.tools.recovery resnet20 --seeds 0 1 2 --steps 8000 --output tools/results/recovery.json

The first is of scikit-learn's digits and takes minutes; the second half an hour a seed on a core of its own, and goes
on where it was stopped.

ResNet-20 (`resnet20_jpeg`) trains on jpeg_train, towards the float network's logits and without labels, judged on
jpeg_test. Its bytes are those of all stored weights: codes, codebook, scales, biases and the layers left in float.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

import graphc
from graphc.formats.vector import Vector
from graphc.graph import Graph
from graphc.pipeline import Pipeline
from graphc.tools import demo, statement
from graphc.tools.statement import Known
from graphc.tools.zoo.augmentation import augmented, training_images
from graphc.tools.zoo.catalog import MODELS
from graphc.trainable import Trainable
from graphc.training.distillation import Distillation, distill
from graphc.training.loop import Samples, Training, train
from graphc.training.sparsification import Penalty, largest_threshold, layer_weights, masked_trainable
from graphc.training.stored_weight import expressed
from graphc.training.vectors import VectorTraining, utilization, vector_trainable

Figures = dict[str, Any]
KEPT = Pipeline("canonicalize,fold_constants,eliminate_common_subexpressions,drop_unused")
FOLDED = Pipeline("fold_batchnorm,eliminate_common_subexpressions,drop_unused")
SHARED = Vector(d=9, codewords=256, shared=True)  # a piece is one 3x3 kernel
FLOAT = ("conv1", "linear")  # the first and the last layer


def stored(graph: Graph) -> int:
    """Bytes of all weights."""
    return sum(tensor.nbytes for tensor in graph.weights.values())


# -- ResNet-20 ------------------------------------------------------------------------------------


def resnet20(options: argparse.Namespace, known: Known) -> None:
    more = ("assignment", "batch", "learning_rate", "latent_rate", "temperature", "images")
    for seed in options.seeds:
        steps = "+".join(map(str, options.steps))
        known.once(f"{steps} steps, seed {seed}{statement.apart(options, *more)}", recovered, options, seed)


def recovered(options: argparse.Namespace, seed: int) -> Figures:
    entry = MODELS["resnet20_jpeg"]
    example = (entry.example_inputs(4)[0],)
    # Batch normalizations stay while codewords move, and go into the scales of the rows in the end.
    original = KEPT.run(graphc.trace(entry.build(), example, dynamic_shapes=({0: Dim("batch", min=1, max=1024)},)))
    teacher = FOLDED.run(original)
    student = vector_trainable(original, VectorTraining(SHARED, options.assignment), exclude=FLOAT)
    untrained = FOLDED.run(expressed(student))
    images, labels = training_images(entry, options.images)
    kept = len(images) - len(images) // 25
    held_back = images[kept:].to(memory_format=torch.channels_last), labels[kept:]

    def metric(graph: Graph) -> float:
        """On the images that are not trained on; the original has seen them."""
        with torch.no_grad():
            found = torch.cat([graph.run_flat([part])[0].argmax(1) for part in held_back[0].split(options.batch)])
        return 100 * float((found == held_back[1]).float().mean())

    options.folder.mkdir(parents=True, exist_ok=True)
    aims = Distillation(temperature=options.temperature, precision="bf16")
    slow = options.latent_rate or [1.0] * len(options.steps)
    phases = zip(options.steps, options.learning_rate, slow, strict=True)
    for phase, (steps, rate, latent) in enumerate(phases):
        name = f"resnet20-{options.assignment}-{'+'.join(map(str, options.steps[: phase + 1]))}x{options.batch}-{seed}"
        training = Training(
            steps, rate, warmup=min(100, steps // 10), seed=seed + 100 * phase, interval=options.interval,
            rates={} if latent == 1 else {"parametrizations.*.original": latent},
            checkpoint=options.folder / f"{name}.safetensors", what=name,
        )  # fmt: skip
        samples = Samples((images[:kept],), options.batch, training.seed, augmented)
        distill(student, teacher, samples, aims, training, metric, options.progress)
    result = FOLDED.run(expressed(student))
    names = layer_weights(teacher, exclude=FLOAT)
    parts = (".codes", ".codebook", ".scale.folded")
    coded = {id(value): value for name, value in result.weights.items() if name.endswith(parts)}
    return {
        "float top-1 %": entry.evaluate(teacher.run, options.limit),
        "top-1 % before training": entry.evaluate(untrained.run, options.limit),
        "top-1 % after training": entry.evaluate(result.run, options.limit),
        "bits a weight of the coded layers": round(
            8 * sum(value.nbytes for value in coded.values()) / sum(teacher.weights[name].numel() for name in names), 3
        ),
        "bytes": stored(result),
        "times smaller than fp32": round(stored(teacher) / stored(result), 2),
        "images trained on, repetitions counted": sum(options.steps) * options.batch,
    }


# -- digits ---------------------------------------------------------------------------------------


class Digits:
    """scikit-learn's digits, 1,200 to train on and 597 held out, and a network 64-64-64-10 trained on them."""

    def __init__(self, seed: int) -> None:
        known = demo.load()
        images = torch.cat([known.images, known.held_out_images]).flatten(1)
        labels = torch.cat([known.labels, known.held_out_labels])
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        self.images, self.labels = images[order[:1200]], labels[order[:1200]]
        self.held_out = images[order[1200:]], labels[order[1200:]]
        self.samples, self.seed = Samples((self.images, self.labels), 50, seed), seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
        dynamic = ({0: Dim("batch", min=1, max=4096)},)
        module = Trainable(graphc.trace(model, (self.images[:4],), dynamic_shapes=dynamic))
        self.train(module, 10)
        self.graph = module.graph()

    def train(self, module: Trainable, epochs: int, penalty: Callable[[], Tensor] | None = None) -> None:
        def loss(batch: Sequence[Tensor]) -> Tensor:
            error = nn.functional.cross_entropy(module(batch[0]), batch[1])
            return error if penalty is None else error + penalty()

        train(module, loss, self.samples, Training(epochs * self.samples.steps_per_epoch, 3e-3, seed=self.seed))

    def loss(self, graph: Graph) -> float:
        """Cross entropy on the training set."""
        with torch.no_grad():
            return float(nn.functional.cross_entropy(graph.run(self.images), self.labels))

    def accuracy(self, graph: Graph) -> float:
        with torch.no_grad():
            return 100 * float((graph.run(self.held_out[0]).argmax(1) == self.held_out[1]).float().mean())


def vectors(seed: int) -> Figures:
    """From a random codebook of the wrong size, without re-seeding; the seconds are the processor's, in one thread."""
    digits, figures = Digits(seed), Figures()
    figures["float top-1 %"] = digits.accuracy(digits.graph)
    for d, codewords in ((4, 16), (8, 16), (8, 256)):
        seconds = {}
        for assignment in ("euclidean", "cosine", "dkm"):
            form = Vector(d, codewords, scale=False, seed=seed)
            module = vector_trainable(digits.graph, VectorTraining(form, assignment, "random"))
            start = time.process_time()
            digits.train(module, 8)
            seconds[assignment] = (time.process_time() - start) / 8
            name = f"d{d} K{codewords} {assignment}"
            figures[f"{name}: top-1 %"] = digits.accuracy(expressed(module))
            figures[f"{name}: perplexity / K"] = utilization(module)
        figures[f"d{d} K{codewords}: epoch time, cosine / dkm"] = seconds["cosine"] / seconds["dkm"]
    return figures


def sparsity(seed: int) -> Figures:
    """Each penalty for 30 epochs, TAMADE at delta 0.02, then five epochs on the weights that are left.

    The penalties' strengths are such that networks with R-L1 are about as accurate as those with DRR. delta is relative
    to a loss that a penalty has raised; so magnitude's threshold is also found for the loss that DRR ends at.
    """
    digits, figures = Digits(seed), Figures()
    names = layer_weights(digits.graph)
    graphs, thresholds = {}, {}
    for name, penalty in PENALTIES.items():
        module = Trainable(digits.graph)
        weights = [module.weight(each) for each in names]
        digits.train(module, 30, lambda penalty=penalty, weights=weights: penalty(weights))  # type: ignore[misc]
        graphs[name] = module.graph()
        masked, found = largest_threshold(graphs[name], names, digits.loss)
        tuned = masked_trainable(masked, names)
        digits.train(tuned, 5)
        figures[f"{name}: times fewer weights"] = found.ratio
        figures[f"{name}: loss at the threshold"] = found.loss
        figures[f"{name}: top-1 %"] = digits.accuracy(tuned.graph())
        thresholds[name] = found
    delta = thresholds["DRR"].loss / digits.loss(graphs["magnitude"]) - 1
    masked, found = largest_threshold(graphs["magnitude"], names, digits.loss, delta)
    figures["magnitude at DRR's loss: times fewer weights"] = found.ratio
    return figures


PENALTIES = {"magnitude": Penalty(0), "R-L1": Penalty(2e-3, "l1"), "DRR": Penalty(1e-3)}


def seeds(measure: Callable[[int], Figures], options: argparse.Namespace, known: Known) -> None:
    """Each seed's, and the mean of all that are known."""
    for seed in options.seeds:
        known.once(f"seed {seed}", measure, seed)
    rows = [row for key, row in known.items() if key != "mean"]
    known["mean"] = {key: statistics.fmean(row[key] for row in rows) for key in rows[0]}


FIGURES: dict[str, statement.Measure] = {
    "vectors": partial(seeds, vectors),
    "sparsity": partial(seeds, sparsity),
    "resnet20": resnet20,
}


def main(arguments: Sequence[str] | None = None) -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        parser.add_argument("--steps", type=int, nargs="+", default=[100], help="of resnet20, of each phase")
        parser.add_argument("--batch", type=int, default=64, help="of resnet20")
        parser.add_argument("--interval", type=int, default=100, help="steps between two checkpoints of resnet20")
        parser.add_argument("--learning-rate", type=float, nargs="+", default=[1e-3], help="of resnet20's phases")
        parser.add_argument(
            "--latent-rate", type=float, nargs="+", help="factor of it for the latent weights, each phase's"
        )
        parser.add_argument("--temperature", type=float, default=4.0, help="of resnet20's distillation")
        parser.add_argument(
            "--assignment", choices=("euclidean", "cosine"), default="euclidean", help="of resnet20's codes"
        )
        parser.add_argument("--images", type=int, default=50_000, help="of resnet20; the last 25th are not trained on")
        parser.add_argument(
            "--folder", type=Path, default=Path.home() / ".cache/graphc/recovery", help="where checkpoints lie"
        )

    return statement.main("graphc.tools.recovery", __doc__, FIGURES, arguments, add)


if __name__ == "__main__":
    sys.exit(main())
