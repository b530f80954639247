"""The figures that graphc is held to, measured on real weights and data: `python -m graphc.tools.figures [NAME ...]`.

resnet20     CIFAR ResNet-20 on 10,000 images: fp32 against torch, int8 against fp32, arm64 against the host
models       fp32 error of ten networks against torch, on the host and on arm64 under emulation
onnx         int8 ResNet-20 as plain ONNX in ONNX Runtime against graphc's own reference
time         importing graphc beyond torch; tracing and compiling ResNet-20 and ResNet-18 in int8
speed        ResNet-18 and MobileNetV2 against ONNX Runtime, side by side as the bench does it
decode       a layer of one token in each weight format: its time against fp32's and what its bytes promise
determinism  the same model, data and seed in two processes: the same bytes
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import graphc
from graphc import compiler
from graphc.artifact import Artifact
from graphc.calibration import batches
from graphc.pipeline import PassContext, pipeline
from graphc.progress import silent
from graphc.target import Target
from graphc.tools import statement
from graphc.tools.zoo.catalog import MODELS

Figures = dict[str, Any]

# Each with its largest allowed fp32 error, relative to the largest output.
NETWORKS = (
    "resnet18", "mobilenet_v2", "unet", "lenet", "ds_cnn", "mobilenet_v1_025", "resnet8", "stories260k",
    "llama_char105", "minilm",
)  # fmt: skip
BOUND = 1e-4


def build(name: str, precision: str, target: str = "host") -> Artifact:
    """One network of the zoo, compiled for batches of one."""
    entry = MODELS[name]
    calibration = list(entry.calibration(256)) if precision == "int8" else None
    return graphc.compile(entry.build(), target, entry.example_inputs(1), calibration)


def relative_error(given: Any, expected: Any) -> float:
    """The largest absolute difference over the largest expected magnitude, over all outputs."""
    if isinstance(expected, tuple | list):
        return max(relative_error(a, b) for a, b in zip(given, expected, strict=True))
    if isinstance(expected, dict):
        return max(relative_error(given[key], expected[key]) for key in expected)
    reference = expected.numpy()
    return float(np.abs(given - reference).max() / np.abs(reference).max())


class Recorder:
    """Runs and keeps what came out, so that predictions can be compared image by image."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run
        self.outputs: list[np.ndarray[Any, Any]] = []

    def __call__(self, *inputs: Any) -> Any:
        with torch.no_grad():
            output = self.run(*inputs)
        self.outputs.append(np.asarray(output))
        return output

    @property
    def stacked(self) -> np.ndarray[Any, Any]:
        return np.concatenate(self.outputs)


def resnet20(limit: int | None) -> Figures:
    entry = MODELS["resnet20_jpeg"]
    emulated = min(limit or 200, 200)
    torch_run = Recorder(entry.build())
    reference = entry.evaluate(torch_run, limit)
    runs = {}
    figures: Figures = {"images": len(torch_run.stacked), "torch top-1 %": reference}
    for precision in ("fp32", "int8"):
        artifact = build("resnet20_jpeg", precision)
        runs[precision] = Recorder(artifact.run)
        figures[f"{precision} top-1 %"] = entry.evaluate(runs[precision], limit, 1)
        figures[f"{precision} bytes of weights"] = artifact.size.weights
        figures[f"{precision} bytes of weights and code"] = int(artifact.size)
    same = runs["fp32"].stacked.argmax(1) == torch_run.stacked.argmax(1)
    figures["fp32: images predicted as torch does"] = int(same.sum())
    figures["int8: points lost"] = round(reference - figures["int8 top-1 %"], 4)
    figures["int8: images predicted as torch does"] = int(
        (runs["int8"].stacked.argmax(1) == torch_run.stacked.argmax(1)).sum()
    )
    parameters = sum(tensor.numel() for tensor in entry.build().parameters()) * 4
    figures["int8 bytes of weights / fp32 parameters"] = figures["int8 bytes of weights"] / parameters
    figures["int8 bytes of weights / fp32 bytes of weights"] = (
        figures["int8 bytes of weights"] / figures["fp32 bytes of weights"]
    )
    for precision in ("fp32", "int8"):
        arm = Recorder(build("resnet20_jpeg", precision, "arm64").run)
        entry.evaluate(arm, emulated, 1)
        host = runs[precision].stacked[:emulated]
        figures[f"arm64 {precision}: images"] = len(arm.stacked)
        figures[f"arm64 {precision}: same top-1 as the host"] = int((arm.stacked.argmax(1) == host.argmax(1)).sum())
        figures[f"arm64 {precision}: logits bit-equal to the host's"] = int((arm.stacked == host).all(1).sum())
    return figures


def models(limit: int | None) -> Figures:
    figures: Figures = {}
    for name in NETWORKS[: limit or len(NETWORKS)]:
        inputs = MODELS[name].example_inputs(1)
        with torch.no_grad():
            expected = MODELS[name].build()(*inputs)
        for target in ("host", "arm64"):
            figures[f"{name} {target}"] = relative_error(build(name, "fp32", target).run(*inputs), expected)
    figures["worst"] = max(figures.values())
    figures["bound"] = BOUND
    return figures


def onnx(limit: int | None) -> Figures:
    import onnxruntime

    from graphc.exporters.onnx import export

    entry = MODELS["resnet20_jpeg"]
    graph = graphc.trace(entry.build(), entry.example_inputs(1))
    compiled = pipeline("int8").run(graph, PassContext(calibration=batches(graph, entry.calibration(256))))
    model = export(compiled)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (name,) = (item.name for item in session.get_inputs())
    artifact = build("resnet20_jpeg", "int8")
    reference, native = Recorder(compiled.run), Recorder(artifact.run)
    judge = Recorder(lambda x: session.run(None, {name: x.numpy()})[0])
    for run in (reference, judge, native):
        entry.evaluate(run, limit or 200, 1)
    return {
        "images": len(reference.stacked),
        "ONNX Runtime: logits bit-equal to the reference": int((judge.stacked == reference.stacked).all(1).sum()),
        "ONNX Runtime: largest difference": float(np.abs(judge.stacked - reference.stacked).max()),
        "artifact: logits bit-equal to the reference": int((native.stacked == reference.stacked).all(1).sum()),
        "largest logit": float(np.abs(reference.stacked).max()),
    }


def time_(limit: int | None) -> Figures:
    def seconds(code: str) -> float:
        """The least of five runs of a fresh interpreter."""
        timed = f"import time; start = time.perf_counter(); {code}; print(time.perf_counter() - start)"
        return min(
            float(subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=True).stdout)
            for _ in range(limit or 5)
        )

    base, both = seconds("import torch"), seconds("import torch, graphc, graphc.compiler")
    figures = {"import torch, s": base, "import graphc and its compiler beyond torch, s": both - base}
    for title, name, images in (("ResNet-20", "resnet20_jpeg", 256), ("ResNet-18", "resnet18", 64)):
        entry = MODELS[name]
        model, inputs, calibration = entry.build(), entry.example_inputs(1), list(entry.calibration(images))
        start = time.perf_counter()
        graph = graphc.trace(model, inputs)
        transformed = pipeline("int8").run(graph, PassContext(calibration=batches(graph, calibration)))
        lowered = time.perf_counter()
        compiler.lower(transformed, Target.parse("host"), silent, {})
        end = time.perf_counter()
        figures[f"trace, calibrate ({images} images) and compile {title} int8, s"] = end - start
        figures[f"of these lowering, s ({title})"] = end - lowered
    return figures


def speed(limit: int | None) -> Figures:
    """The bench's own run, of fewer engines: see `graphc bench` for all."""
    from graphc.tools.bench import measurement, suite
    from graphc.tools.bench.engines import ENGINES
    from graphc.tools.bench.workloads import WORKLOADS

    figures: Figures = {"threads": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log.txt").open("w") as log:
        for group in suite.groups(("resnet18", "mobilenet_v2"), (1,), (figures["threads"],)):
            engines = [ENGINES["graphc"], ENGINES["ONNX Runtime"]]
            kind = WORKLOADS[group.name].kind
            entries = measurement.measure(group, kind, engines, Path(folder), limit or 5, log, lambda text: None, 0)
            for entry in entries:
                if entry["status"] != "ok":
                    raise graphc.GraphcError(f"{group.name} by {entry['engine']}: {entry['reason']}")
            times = {(entry["engine"], entry["precision"]): entry["seconds"] for entry in entries}
            for precision in ("fp32", "int8"):
                ours, theirs = times["graphc", precision], times["ONNX Runtime", precision]
                figures[f"{group.name} {precision}: graphc, ms"] = round(ours * 1e3, 3)
                figures[f"{group.name} {precision}: ONNX Runtime, ms"] = round(theirs * 1e3, 3)
                figures[f"{group.name} {precision}: graphc / ONNX Runtime"] = ours / theirs
    return figures


def decode(limit: int | None) -> Figures:
    """A stack of linear layers whose weights exceed the caches, one token; every format in turns with the others."""
    from graphc.graph import Graph
    from graphc.latency import BASELINE, FORMATS, measure
    from graphc.pipeline import CLEAN, Pipeline
    from graphc.tools.bench.peaks import Peaks

    layers, width, threads = limit or 64, 2048, len(os.sched_getaffinity(0))
    torch.manual_seed(0)
    stack = torch.nn.Sequential(*(torch.nn.Linear(width, width, bias=False) for _ in range(layers))).eval()
    x = torch.randn(1, 1, width)
    graph = graphc.trace(stack, (x,))
    target, formats = Target.parse("host"), {**FORMATS, "low rank 1/4": LOW_RANK.format(width // 8)}
    peaks = Peaks(target, threads)

    def stored(compressed: Graph) -> int:
        return sum(weight.nbytes for weight in compressed.weights.values())

    before = peaks.read()
    with tempfile.TemporaryDirectory() as folder:
        table = measure(graph, target, formats, threads=threads, rounds=20, cache=Path(folder, "latency.json"))
    read = max(before, peaks.read())
    clean = Pipeline(CLEAN).run(graph)
    figures: Figures = {"threads": threads, "layers": f"{layers} of {width} x {width}", "read, GB/s": read / 1e9}
    times = {name: sum(table[str(n), name].nanoseconds for n in range(layers)) / layers for name in formats}
    for name, passes in formats.items():
        size = (
            stored(Pipeline(passes).run(clean, PassContext(target, batches(clean, [x])))) if passes else stored(clean)
        )
        figures[name] = (
            f"{times[name] / 1e3:.1f} us, {times[BASELINE] / times[name]:.2f}x of {BASELINE}, promised by its bytes "
            f"{stored(clean) / size:.2f}x, {size / layers / times[name]:.1f} GB/s, "
            f"{size / layers / times[name] / (read / 1e9):.0%} of read"
        )
    return figures


LOW_RANK = 'compress{{format="low_rank(rank={})"}},split_low_rank'


def determinism(limit: int | None) -> Figures:
    code = "from graphc.tools.figures import build; print(build('resnet20_jpeg', {!r}, {!r}).content_hash)"
    figures: Figures = {}
    for precision, target in (("int8", "host"), ("fp32", "host"), ("int8", "arm64"))[: limit or 3]:
        hashes = [
            subprocess.run(
                [sys.executable, "-c", code.format(precision, target)], capture_output=True, text=True, check=True
            ).stdout.split()[-1]
            for _ in range(2)
        ]
        figures[f"{precision} {target}: same bytes twice"] = hashes[0] == hashes[1]
        figures[f"{precision} {target}: sha256"] = hashes[0][:16]
    return figures


FIGURES: dict[str, Callable[[int | None], Figures]] = {
    "resnet20": resnet20,
    "models": models,
    "onnx": onnx,
    "time": time_,
    "speed": speed,
    "decode": decode,
    "determinism": determinism,
}


def main(arguments: Sequence[str] | None = None) -> int:
    def filling(measure: Callable[[int | None], Figures]) -> statement.Measure:
        return lambda options, known: known.update(measure(options.limit))

    named = {name: filling(measure) for name, measure in FIGURES.items()}
    return statement.main("graphc.tools.figures", __doc__, named, arguments)


if __name__ == "__main__":
    sys.exit(main())
