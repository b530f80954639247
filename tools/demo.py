"""The demonstration behind `make demo`: train a small network on handwritten digits, compile it, compare.

scikit-learn's digits: 1,797 images of 8x8 pixels, the last fifth held out. The network is compiled for this machine and
for arm64, in float and in int8; every variant classifies the held-out digits. Everything lands in `demo-output/`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import graphc
from graphc import container
from graphc.runtime import emulator
from graphc.target import machine_arch

SEED = 0
EPOCHS = 20
BATCH = 32
VARIANTS = (("host", "fp32"), ("host", "int8"), ("arm64", "fp32"), ("arm64", "int8"))


@dataclass(frozen=True)
class Digits:
    """Images [N, 1, 8, 8] in [0, 1] and labels [N]; the held-out ones are never trained on."""

    images: Tensor
    labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor


def load() -> Digits:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images / 16).to(torch.float32)[:, None]
    labels = torch.from_numpy(bunch.target)
    split = len(labels) * 4 // 5
    return Digits(images[:split], labels[:split], images[split:], labels[split:])


def network() -> nn.Module:
    """Three convolutions with batch normalization, a residual addition, pooling and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        Residual(32),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


class Residual(nn.Module):
    """x + convolution(x), then ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.convolution(x)))


def train(digits: Digits, progress: Progress) -> nn.Module:
    """Adam on the cross entropy, the learning rate falling to nought along a cosine."""
    torch.manual_seed(SEED)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    steps = EPOCHS * (len(digits.labels) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    task = progress.add_task("training", total=EPOCHS)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(digits.labels)).split(BATCH)[: len(digits.labels) // BATCH]:
            loss = nn.functional.cross_entropy(model(digits.images[batch]), digits.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        progress.advance(task)
    return model.eval()


def build(model: nn.Module, digits: Digits, target: str, precision: str, folder: Path) -> graphc.Artifact:
    """Compile one variant; the artifact, the dumps and the report lie in `folder`."""
    artifact = graphc.compile(
        model,
        target,
        (digits.images[:1],),
        calibration=[digits.images[:256]] if precision == "int8" else None,
        name="digits",
        dump_ir=folder / "ir",
        seed=SEED,
        progress=False,
    )
    artifact.save(folder / "digits.graphc")
    container.write(folder / "report.html", artifact.report().to_html().encode())
    return artifact


def runs(target: graphc.Target) -> bool:
    """Whether this machine can run code for a target."""
    try:
        return target.arch == machine_arch() or bool(emulator.find(target.arch))
    except graphc.GraphcError:
        return False


@dataclass(frozen=True)
class Classified:
    """The class of every held-out digit, and the median milliseconds of a run as text."""

    classes: Tensor
    time: str


def classify(run: Callable[[Any], Any], digits: Digits, progress: Progress, name: str) -> Classified:
    """Classify the held-out digits one at a time."""
    classes, times = [], []
    with torch.inference_mode():
        for image in progress.track(digits.held_out_images.numpy()[:, None], description=name):
            start = time.perf_counter()
            logits = run(image)
            times.append((time.perf_counter() - start) * 1e3)
            classes.append(int(logits.argmax()))
    return Classified(torch.tensor(classes), f"{statistics.median(times):.3f}")


def percent(found: Tensor, expected: Tensor) -> str:
    """How often two lists of classes agree."""
    return f"{100 * float((found == expected).float().mean()):.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m graphc.tools.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo-output"), metavar="DIR")
    folder: Path = parser.parse_args().output
    torch.set_num_threads(1)  # the network is too small to share out, and the same number gives the same weights
    console = Console(width=None if sys.stdout.isatty() else 120)
    digits = load()

    table = Table(title=f"{len(digits.held_out_labels)} held-out digits, one at a time")
    for column in ("variant", "weights / file, bytes", "top-1, %", "same class as torch, %", "ms a run", "lies in"):
        table.add_column(column, justify="left" if column in ("variant", "lies in") else "right")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        model = train(digits, progress)
        reference = classify(lambda image: model(torch.from_numpy(image)), digits, progress, "torch")
        stored = sum(tensor.nbytes for tensor in model.state_dict().values())
        table.add_row(
            "torch fp32", f"{stored:,}", percent(reference.classes, digits.held_out_labels), "", reference.time
        )
        compiling = progress.add_task("compiling", total=len(VARIANTS))
        for target, precision in VARIANTS:
            artifact = build(model, digits, target, precision, folder / f"{target}-{precision}")
            progress.advance(compiling)
            row = [f"{target} {precision}", f"{artifact.size.weights:,} / {artifact.size.file:,}"]
            if runs(artifact.target):
                found = classify(artifact.run, digits, progress, row[0])
                row += [percent(found.classes, digits.held_out_labels), percent(found.classes, reference.classes)]
                row += [found.time if artifact.target.arch == machine_arch() else f"{found.time} emulated"]
            else:
                row += ["", "", "install qemu-user"]
            table.add_row(*row, f"{folder}/{target}-{precision}/")

    console.print(table)
    console.print(
        "In each folder: digits.graphc, report.html, and ir/ with the graph after every pass.", highlight=False
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
