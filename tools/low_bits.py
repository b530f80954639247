"""Accuracy in few bits, post-training and trained: `python -m graphc.tools.low_bits [--network NAME ...]`.

For each network of the zoo: top-1 of the graph in torch, the share of images predicted as the float graph does, and the
seconds that it took to get there. Calibration and training read images that no benchmark scores. `--images`,
`--iterations` and `--steps` make a run shorter; the figures are then those of that run, and are printed with it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import graphc
from graphc.calibration import batches
from graphc.graph import Graph
from graphc.passes.quantize import Quantize
from graphc.passes.reconstruct import Reconstruct
from graphc.pipeline import CLEAN, PassContext, Pipeline
from graphc.progress import terminal
from graphc.tools.zoo.catalog import MODELS
from graphc.training.loop import Samples, Training
from graphc.training.quantization import train_quantized

NETWORKS = ("resnet20_jpeg", "resnet18", "mobilenet_v2", "tiny_darknet")
METHODS = ("nearest", "adaround", "block", "qat")
# Of weights and of activations, for each method: training is for what the others lose most in.
BITS = {
    "nearest": ((8, 8), (4, 8), (4, 4)),
    "adaround": ((4, 8), (4, 4)),
    "block": ((4, 8), (4, 4)),
    "qat": ((4, 4), (2, 2)),
}


class Study:
    """One network, its calibration data, and the float graph's predictions."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self.entry, self.options = MODELS[name], options
        self.batch = self.entry.batch
        self.original = Pipeline(CLEAN).run(graphc.trace(self.entry.build(), self.entry.example_inputs(self.batch)))
        self.calibration = batches(self.original, self.entry.calibration(options.calibration, self.batch))
        self.top1, self.predicted = self.judge(self.original)

    def judge(self, graph: Graph) -> tuple[float, Tensor]:
        """Top-1 in %, and the predictions, int64 [N]."""
        found: list[Tensor] = []

        def run(x: Tensor) -> Tensor:
            missing = self.batch - len(x)  # the graph takes whole batches only
            whole = torch.cat([x, x[:1].expand(missing, *x.shape[1:])]) if missing else x
            with torch.no_grad():
                logits = graph.run_flat([whole])[0][: len(x)]
            found.append(logits.argmax(-1))
            return logits

        top1 = self.entry.evaluate(run, self.options.images, self.batch)
        return top1, torch.cat(found)

    def quantized(self, method: str, bits: tuple[int, int], progress: Any) -> Graph:
        ctx = PassContext(calibration=self.calibration, seed=self.options.seed, progress=progress)
        if method in ("adaround", "block"):
            granularity = "layer" if method == "adaround" else "block"
            item = Reconstruct(*bits, granularity=granularity, iterations=self.options.iterations)  # type: ignore[arg-type]
            return Pipeline([item]).run(self.original, ctx)
        start = Pipeline([Quantize(*bits)]).run(self.original, ctx)
        if method == "nearest":
            return start
        images = torch.cat([x for (x,) in self.entry.calibration(self.options.training, self.batch)])
        samples = Samples((images,), self.batch, self.options.seed)
        training = Training(
            self.options.steps, 1e-3, warmup=self.options.steps // 20, seed=self.options.seed, what="training"
        )
        return train_quantized(self.original, start, samples, training, progress=progress)

    def row(self, method: str, bits: tuple[int, int], progress: Any) -> dict[str, Any]:
        start = time.perf_counter()
        graph = self.quantized(method, bits, progress)
        seconds = time.perf_counter() - start
        top1, predicted = self.judge(graph)
        return {
            "method": method,
            "bits": f"W{bits[0]}A{bits[1]}",
            "top-1 %": round(top1, 3),
            "points lost": round(self.top1 - top1, 3),
            "agreement %": round(100 * float((predicted == self.predicted).double().mean()), 2),
            "seconds": round(seconds, 1),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m graphc.tools.low_bits", description=__doc__)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=["resnet20_jpeg"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--images", type=int, help="scored; all of them where it is not given")
    parser.add_argument("--calibration", type=int, default=200, help="images")
    parser.add_argument("--training", type=int, default=10_000, help="images, without their labels")
    parser.add_argument("--iterations", type=int, default=500, help="of each layer or block")
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON file")
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {}
    for name in options.network:
        study = Study(name, options)
        figures[name] = {"images": len(study.predicted), "float top-1 %": round(study.top1, 3), "rows": []}
        print(name, f"{len(study.predicted)} images, float top-1 {study.top1:.3f} %", flush=True)
        for method in options.methods:
            for bits in BITS[method]:
                with terminal() as progress:
                    row = study.row(method, bits, progress)
                figures[name]["rows"].append(row)
                print("  ", "  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if options.output is not None:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
