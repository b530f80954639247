"""The figures that graphc is held to, measured on real weights and data: `python -m graphc.tools.figures [NAME ...]`.

resnet20     CIFAR ResNet-20 on 10,000 images: fp32 against torch, int8 against fp32, arm64 against the host
models       fp32 error of ten networks against torch, on the host and on arm64 under emulation
onnx         int8 ResNet-20 as plain ONNX in ONNX Runtime against graphc's own reference
time         importing graphc beyond torch; tracing and compiling ResNet-20 in int8
speed        ResNet-18 and MobileNetV2 against ONNX Runtime, interleaved in one run: ratio of medians
determinism  the same model, data and seed in two processes: the same bytes
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import graphc
from graphc.artifact import Artifact
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

    from graphc.calibration import batches
    from graphc.exporters.onnx import export
    from graphc.pipeline import PassContext, pipeline

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
    entry = MODELS["resnet20_jpeg"]
    model, inputs, calibration = entry.build(), entry.example_inputs(1), list(entry.calibration(256))
    start = time.perf_counter()
    graphc.compile(model, "host", inputs, calibration)
    return {
        "import torch, s": base,
        "import graphc and its compiler beyond torch, s": both - base,
        "trace, calibrate (256 images) and compile ResNet-20 int8, s": time.perf_counter() - start,
    }


def speed(limit: int | None) -> Figures:
    from onnxruntime import InferenceSession, SessionOptions

    from graphc.exporters.onnx import export

    figures: Figures = {}
    for name in ("resnet18", "mobilenet_v2"):
        entry = MODELS[name]
        inputs = entry.example_inputs(1)
        plain = export(graphc.trace(entry.build(), inputs)).SerializeToString()
        peers = {"fp32": plain, "int8": _quantized_by_onnxruntime(plain, list(entry.calibration(32, 1)))}
        for precision, model in peers.items():
            artifact = build(name, precision)
            options = SessionOptions()
            options.intra_op_num_threads = artifact.threads
            session = InferenceSession(model, options, providers=["CPUExecutionProvider"])
            feeds = {item.name: leaf.numpy() for item, leaf in zip(session.get_inputs(), inputs, strict=True)}
            runs: dict[str, Callable[[], Any]] = {
                "graphc": partial(artifact.run, *inputs),
                "ONNX Runtime": partial(session.run, None, feeds),
            }
            medians = {who: statistics.median(times) for who, times in interleaved(runs, limit or 100).items()}
            for who, median in medians.items():
                figures[f"{name} {precision}: {who}, ms"] = round(median * 1e3, 3)
            figures[f"{name} {precision}: graphc / ONNX Runtime"] = medians["graphc"] / medians["ONNX Runtime"]
    figures["threads"] = artifact.threads
    return figures


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run, taken in turns after a tenth of the rounds as warm-up.

    Before each timed run stands one that is not: the other's threads may still be spinning.
    """
    times: dict[str, list[float]] = {who: [] for who in runs}
    for turn in range(rounds + rounds // 10):
        for who, run in runs.items():
            run()
            start = time.perf_counter()
            run()
            if turn >= rounds // 10:
                times[who].append(time.perf_counter() - start)
    return times


def _quantized_by_onnxruntime(model: bytes, calibration: list[tuple[torch.Tensor, ...]]) -> bytes:
    """ONNX Runtime's own static int8 quantization, as its documentation advises for CPUs: QDQ, weights per channel."""
    import onnx as onnx_format
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter(calibration)

        def get_next(self) -> dict[str, Any] | None:
            names = [item.name for item in onnx_format.load_from_string(model).graph.input]
            batch = next(self.batches, None)
            return None if batch is None else {n: leaf.numpy() for n, leaf in zip(names, batch, strict=True)}

    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        # Optimized before it is quantized: else ONNX Runtime uses few of its integer kernels and is five times slower.
        options = SessionOptions()
        options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(source)
        InferenceSession(model, options, providers=["CPUExecutionProvider"])
        quantize_static(
            source, result, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip
        return result.read_bytes()


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
    "determinism": determinism,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m graphc.tools.figures", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which figures (default: all): {', '.join(FIGURES)}")
    parser.add_argument("--limit", type=int, help="fewer images, models or repetitions, for a quick look")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(FIGURES))
    if unknown:
        parser.error(f"unknown figure {', '.join(unknown)}; known: {', '.join(FIGURES)}")
    measured: dict[str, Figures] = {}
    for name in options.names or FIGURES:
        measured[name] = FIGURES[name](options.limit)
        table = Table("figure", "measured", title=name)
        for key, value in measured[name].items():
            table.add_row(key, f"{value:.3g}" if isinstance(value, float) and abs(value) < 1 else str(value))
        Console().print(table)
        if options.output:
            beside = options.output.with_suffix(".part")
            beside.write_text(json.dumps(measured, indent=2) + "\n")
            beside.rename(options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
