"""What choosing a format for each layer gains: `python -m graphc.tools.assignment [NAME ...]`.

resnet20     ResNet-20 at 8, 16 and 24 times fewer bytes of weights than fp32: mixed formats by the integer program and
             by gates, only linear, only vector, and one linear or vector format for all layers, whose options are tuned
             to fill the bytes, and the linear one that takes the next more; post-training, and after a short recovery
             without labels
reach        the mixed one at 16 times, recovered for longer
sensitivity  seconds of ResNet-18's gradient sensitivity over all formats, and of the integer program

The full run, which goes on where it was stopped, and the figure (an hour and a half on a core of its own):

    python -m graphc.tools.assignment resnet20 --steps 400 --gates 100 --seeds 0 1 2 \\
        --output tools/results/assignment.json --plot tools/results/assignment.png

Bytes are those of all weights that the graph stores. "top-1 %" is of the compressed graph in torch on jpeg_test;
formats are chosen and encoded by 320 images of jpeg_train, and recovery reads all of them, in an order of each seed;
its top-1 is the mean of the seeds. "against" is the difference in top-1 to the mixed integer program (`reach`: to fp32)
on the same images and of the same seeds, with the standard error that the choice of images leaves.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

import graphc
from graphc.analysis import gradients
from graphc.analysis.candidates import FLOAT, FORMATS, Candidates, candidates
from graphc.analysis.items import items
from graphc.analysis.outputs import change
from graphc.assignment import Choice, Option, choices
from graphc.assignment.gates import gates
from graphc.assignment.integer_program import integer_program
from graphc.calibration import batches
from graphc.errors import BudgetError
from graphc.graph import Graph
from graphc.passes.compress import Compress
from graphc.pipeline import CLEAN, PassContext, Pipeline
from graphc.tools import statement
from graphc.tools.figures import Recorder
from graphc.tools.statement import Known
from graphc.tools.zoo import data
from graphc.tools.zoo.augmentation import augmented, training_images
from graphc.tools.zoo.catalog import MODELS
from graphc.training.distillation import Distillation
from graphc.training.loop import Samples, Training
from graphc.training.recovery import recover

RATIOS = (8, 16, 24)
MIXED = "mixed, integer program"
ONCE = "eliminate_common_subexpressions,drop_unused"  # a shared codebook is stored once
_CALIBRATION, _BATCH = 320, 20
_STEP, _RATE = 64, 5e-4  # images of a step of recovery, and its learning rate


def size(graph: Graph) -> int:
    """Bytes of all weights."""
    return sum(tensor.nbytes for tensor in graph.weights.values())


def only(made: Sequence[Choice], kind: str) -> list[Choice]:
    """The options of one kind of format, and f32."""
    return [
        replace(choice, options=tuple(o for o in choice.options if o.format.partition("(")[0] in (kind, FLOAT)))
        for choice in made
    ]


class Study:
    """ResNet-20 with all candidates."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.entry = MODELS["resnet20_jpeg"]
        example = (self.entry.example_inputs(4)[0],)
        dynamic = ({0: Dim("batch", min=1, max=1024)},)
        self.graph = Pipeline(CLEAN).run(graphc.trace(self.entry.build(), example, dynamic_shapes=dynamic))
        self.ctx = PassContext(calibration=batches(self.graph, self.entry.calibration(_CALIBRATION, _BATCH)))

    @cached_property
    def moments(self) -> dict[str, Tensor]:
        return Compress().moments(self.graph, self.ctx)

    @cached_property
    def found(self) -> Candidates:
        return candidates(self.graph, FORMATS, self.ctx)

    @cached_property
    def made(self) -> tuple[Choice, ...]:
        """The options of all layers; bytes and losses of a run that was stopped are those of this one."""

        def measured() -> list[list[Any]]:
            rows = gradients.scores(self.graph, self.found, self.ctx)
            return [[*key, candidate.bytes, rows[key].fisher] for key, candidate in self.found.items()]

        scored = self.known.once("candidates | scores", measured)
        return tuple(
            Choice(
                item,
                tuple(Option(text, taken, loss, data=True) for name, text, taken, loss in scored if name == item.name),
            )
            for item in items(self.graph)
        )

    def ways(self, bound: int, steps: int) -> Mapping[str, Callable[[], str]]:
        """Each way to choose passes that leave at most `bound` bytes of weights."""
        weights = {name for item in items(self.graph) for name in item.weights}
        room = bound - size(self.graph) + sum(self.graph.weights[name].nbytes for name in weights)
        return {
            MIXED: lambda: str(integer_program(self.made, size=room)),
            "vector, integer program": lambda: str(integer_program(only(self.made, "vector"), size=room)),
            "linear, integer program": lambda: str(integer_program(only(self.made, "linear"), size=room)),
            "uniform vector": lambda: self.uniform(_vectors(), bound),
            "uniform linear": lambda: self.uniform(_linears(), bound),
            "uniform linear, next larger": lambda: self.beyond(_linears(), bound),
            "mixed, gates": lambda: str(gates(self.graph, self.found, self.made, self.ctx, room, steps=steps)),
        }

    def uniform(self, specs: Sequence[tuple[str, str]], bound: int) -> str:
        """Of passes that give all layers one format, (kind, spec), the largest of each kind within the bytes; of these
        the one by which the outputs diverge least on the calibration data."""
        largest: dict[str, tuple[int, str]] = {}
        for kind, spec in specs:
            if (taken := self._taken(spec)) <= bound:
                largest[kind] = max(largest.get(kind, (0, "")), (taken, spec))
        if not largest:
            raise BudgetError(f"one format for all layers takes more than {bound:,} bytes, whatever its options")
        few = self.ctx.calibration[:4]
        return min(
            (spec for _, spec in largest.values()), key=lambda spec: change(self.graph, self.compressed(spec), few).kl
        )

    def beyond(self, specs: Sequence[tuple[str, str]], bound: int) -> str:
        """The pass that gives all layers one format and takes least of those that take more than `bound`."""
        return min((taken, spec) for _, spec in specs if (taken := self._taken(spec)) > bound)[1]

    @cache  # noqa: B019 (one study a run)
    def _taken(self, spec: str) -> int:
        """The bytes of all weights; how well they are encoded does not matter here."""
        for slow, fast in ((",range=mse,rounding=gptq", ""), ("codewords", "iterations=0,codewords")):
            spec = spec.replace(slow, fast)
        return size(self.compressed(spec))

    @cache  # noqa: B019
    def compressed(self, spec: str) -> Graph:
        """The graph after passes `compress`, all of which encode by the float graph's moments."""
        graph = self.graph
        for each in Pipeline(spec).passes:
            graph = each.encoded(graph, self.moments, self.ctx)  # type: ignore[attr-defined]
        return Pipeline(ONCE).run(graph, self.ctx)

    def recovered(self, graph: Graph, steps: int, seed: int, checkpoint: Path | None) -> Graph:
        """The graph trained towards the float one's logits on batches of unlabelled training images."""
        images, _ = training_images(self.entry)
        training = Training(steps, _RATE, warmup=min(20, steps), seed=seed, checkpoint=checkpoint, interval=25)
        towards = Distillation(temperature=4, precision="bf16")
        made = recover(self.graph, graph, Samples((images,), _STEP, seed, augmented), training, towards)
        return Pipeline(ONCE).run(made, self.ctx)

    @cache  # noqa: B019
    def judged(self, spec: str, steps: int, seed: int, limit: int | None, folder: Path | None) -> tuple[int, str]:
        """Bytes and `right` of the graph after the passes and, if any, steps of recovery, which a folder keeps."""
        graph = self.compressed(spec)
        if not steps:
            return size(graph), self.right(graph, limit)
        name = hashlib.sha256(f"{spec} {steps} {seed}".encode()).hexdigest()[:16]
        checkpoint = folder and folder / f"recovery-{name}.safetensors"
        made = self.recovered(graph, steps, seed, checkpoint)
        found = size(made), self.right(made, limit)
        if checkpoint:
            checkpoint.unlink()
        return found

    def right(self, graph: Graph, limit: int | None) -> str:
        """For each test image whether it is predicted as labelled, 1 or 0."""
        run, labels = Recorder(graph.run), data.labels("cifar10/jpeg_test.npz", limit)
        self.entry.evaluate(run, limit, 100)
        return "".join(str(int(hit)) for hit in run.stacked.argmax(1) == labels.numpy())


def _vectors() -> list[tuple[str, str]]:
    return [
        (f"{d}{shared}", f'compress{{format="vector(d={d},codewords={2**bits}{shared})"}}')
        for d in (1, 2, 3, 4, 6, 8, 9)
        for bits in range(2, 9)
        for shared in ("", ",shared=true")
    ]


def _linears() -> list[tuple[str, str]]:
    """A layer that groups do not divide has a scale for each row instead."""
    found = []
    for bits in (8, 4, 3, 2):
        row = f'compress{{format="linear(bits={bits},range=mse,rounding=gptq)"}}'
        groups = (
            f'compress{{format="linear(bits={bits},group={group},range=mse,rounding=gptq)",unfit=keep}},{row}'
            for group in (72, 48, 36, 24, 18, 16, 12, 9)
        )
        found += [(f"{bits}", spec) for spec in (row, *groups)]
    return [*found, ("binary", "compress{format=binary}")]


def against(mine: Sequence[str], others: Sequence[str]) -> str:
    """The mean difference of the top-1 of runs on the same images in points, with the images' standard error."""
    pairs = zip(mine, others, strict=True)
    runs = torch.tensor([[int(a) - int(b) for a, b in zip(*pair, strict=True)] for pair in pairs], dtype=torch.float64)
    differences = runs.mean(0)
    return f"{100 * float(differences.mean()):+.2f} +- {100 * float(differences.std()) / len(differences) ** 0.5:.2f}"


def resnet20(options: argparse.Namespace, known: Known) -> None:
    study, total = begun(options, known)
    ways = {ratio: study.ways(total // ratio, options.gates) for ratio in RATIOS}
    for way in next(iter(ways.values())):  # the quick ones of all budgets first
        for ratio in RATIOS:
            row(study, known, f"{ratio}x {way}", ways[ratio][way], options, f"{ratio}x {MIXED}", options.steps)


def reach(options: argparse.Namespace, known: Known) -> None:
    study, total = begun(options, known)
    row(study, known, "16x", study.ways(total // 16, 0)[MIXED], options, "fp32", options.reach)


def begun(options: argparse.Namespace, known: Known) -> tuple[Study, int]:
    """The study and the bytes of the original, which is judged first."""
    study = Study(known)
    total, right = known.once("fp32 | original", study.judged, "", 0, 0, options.limit, None)
    known["images"], known["fp32 bytes"] = len(right), total
    known["fp32 top-1 %"] = 100 * right.count("1") / len(right)
    return study, total


def chosen(known: Known, name: str, choose: Callable[[], str]) -> str:
    """The passes that a way chooses, "" where nothing fits."""
    try:
        return str(known.once(f"{name} | passes", choose))
    except BudgetError:
        known[name] = {"measured": "nothing fits"}
        return str(known.once(f"{name} | passes", str))


def row(
    study: Study,
    known: Known,
    name: str,
    choose: Callable[[], str],
    options: argparse.Namespace,
    other: str,
    steps: int,
) -> None:
    """Choose, compress, recover and judge; each is kept as soon as it is there."""
    spec = chosen(known, name, choose)
    if not spec:
        return
    folder = options.output and options.output.parent
    found: dict[str, Any] = {}
    stages = {
        "": {"encoded": (0, 0)},
        "recovered ": {f"recovered, seed {seed}": (steps, seed) for seed in options.seeds if steps},
    }
    for stage, records in stages.items():
        runs = [
            known.once(f"{name} | {record}", study.judged, spec, *trained, options.limit, folder)
            for record, trained in records.items()
        ]
        if not runs:
            continue
        shares = [100 * right.count("1") / len(right) for _, right in runs]
        found[f"{stage}bytes"] = max(taken for taken, _ in runs)
        found[f"{stage}top-1 %"] = statistics.fmean(shares)
        if len(shares) > 1:
            found[f"{stage}top-1 %, each seed"] = ", ".join(f"{share:.2f}" for share in shares)
        others = [known.get(f"{other} | {record}", known.get(f"{other} | original")) for record in records]
        if other != name and None not in others:
            found[f"{stage}top-1 %, against"] = against([right for _, right in runs], [right for _, right in others])
    known[name] = found | {"times smaller": size(study.graph) / found["bytes"]}


def sensitivity(options: argparse.Namespace, known: Known) -> None:
    entry, count = MODELS["resnet18"], options.limit or gradients.DRAWS
    graph = Pipeline(CLEAN).run(graphc.trace(entry.build(), entry.example_inputs(1)))
    ctx = PassContext(calibration=batches(graph, entry.calibration(count, 1)))
    start = time.perf_counter()
    found = candidates(graph, FORMATS, ctx)
    encoded = time.perf_counter()
    losses = {key: each.fisher for key, each in gradients.scores(graph, found, ctx).items()}
    scored = time.perf_counter()
    integer_program(choices(found, losses), size=size(graph) // 8)
    known["formats"], known["candidates"], known["threads"] = len(FORMATS), len(found), torch.get_num_threads()
    known["compressing all candidates, s"] = encoded - start
    known["gradient sensitivity, s"] = scored - encoded
    known["integer program, s"] = time.perf_counter() - scored


def plot(known: Mapping[str, Any], path: Path) -> None:
    """Top-1 against bytes, a line for each way, before recovery and after."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ways = dict.fromkeys(name.partition("x ")[2] for name, each in known.items() if isinstance(each, dict))
    for number, way in enumerate(ways):
        rows = [each for name, each in known.items() if name.partition("x ")[2] == way and "bytes" in each]
        for key, style in (("top-1 %", "--"), ("recovered top-1 %", "-")):
            points = [(each["bytes"] / 1e3, each[key]) for each in rows if key in each]
            label = f"{way}{', recovered' if style == '-' else ''}"
            if points:
                axes.plot(*zip(*points, strict=True), style, marker="o", color=f"C{number}", label=label)
    axes.axhline(known["fp32 top-1 %"], color="black", linewidth=0.8, label="fp32")
    axes.set(xscale="log", xlabel="kB of weights", ylabel="top-1 %", title=f"ResNet-20, {known['images']:,} images")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    figure.savefig(path)


FIGURES = {"resnet20": resnet20, "reach": reach, "sensitivity": sensitivity}


def main(arguments: Sequence[str] | None = None) -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--gates", type=int, default=400, help="steps of the gates' training")
        parser.add_argument("--steps", type=int, default=100, help="of recovery, for each row of resnet20; 0: none")
        parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of recovery")
        parser.add_argument("--reach", type=int, default=1500, help="steps of recovery in the figure of that name")
        parser.add_argument("--plot", type=Path, help="draw resnet20 into an image file")

    def drawn(options: argparse.Namespace, known: Known) -> None:
        resnet20(options, known)
        if options.plot:
            plot(known, options.plot)

    return statement.main(
        "graphc.tools.assignment", __doc__, FIGURES | {"resnet20": drawn}, arguments, add, ("gates", "steps", "reach")
    )


if __name__ == "__main__":
    sys.exit(main())
