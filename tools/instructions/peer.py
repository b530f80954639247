"""Executed instructions beside those of ONNX Runtime's aarch64 wheel.

    python -m graphc.tools.instructions.peer FOLDER [MODEL ...]

FOLDER gets what the peer needs, once: Debian's arm64 Python with its libraries (by `apt-get`, from where this Debian
gets its packages) and the wheels (by pip). Both engines compute the same network in int8 on the same input, on one
thread, under the same emulated CPU. ONNX Runtime quantizes as its documentation advises: optimized first, QDQ, weights
per channel; with activations of either sign, and for language models dynamically too: its best count is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import graphc
from graphc.runtime.emulator import find
from graphc.tools.instructions import GETPPID, count_steps, counting
from graphc.tools.instructions.__main__ import share
from graphc.tools.zoo.catalog import MODELS

NETWORKS = ("resnet20_jpeg", "mobilenet_v2", "resnet18", "minilm")
# The emulated CPU, graphc's target, and the features that the kernel would report of it. `max` alone also has SVE in
# vectors of 64 bytes and SME, which the peer uses and graphc's targets do not have yet.
_ARMV8_2 = "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp asimdrdm"
CPUS = {
    "neoverse-n1": ("arm64", f"{_ARMV8_2} lrcpc dcpop asimddp"),
    "max,sve=off,sme=off": ("arm64:max", f"{_ARMV8_2} asimddp bf16 i8mm"),
    "max": ("arm64:max", f"{_ARMV8_2} asimddp sve bf16 i8mm"),
}

PACKAGES = (
    "python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libc6", "libstdc++6", "libgcc-s1",
    "zlib1g", "libexpat1", "libssl3", "libbz2-1.0", "liblzma5", "libffi8", "libsqlite3-0", "libuuid1",
)  # fmt: skip

# Runs in the emulator. Bound inputs and outputs spare it copies; getppid marks the ends of a run for the counter.
_RUN = """
import os, sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
binding = session.io_binding()
for name, value in numpy.load(sys.argv[2]).items():
    binding.bind_cpu_input(name, value)
for output in session.get_outputs():
    binding.bind_output(output.name)
for _ in range(3):
    os.getppid()
    session.run_with_iobinding(binding)
    os.getppid()
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m graphc.tools.instructions.peer", description=__doc__.split("\n")[0]
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the peer is kept")
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {', '.join(NETWORKS)}")
    parser.add_argument("--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    prepare(folder)
    figures = {}
    for name in options.models or NETWORKS:
        figures[name] = compare(folder, name)
        for cpu, found in figures[name].items():
            theirs = min(found["ONNX Runtime"].values())
            print(f"{name} {cpu}: graphc {found['graphc']}, ONNX Runtime {theirs}, ratio {found['ratio']}")
        if options.output:
            beside = options.output.with_suffix(".part")
            beside.write_text(json.dumps(figures, indent=2) + "\n")
            beside.rename(options.output)
    return 0


def compare(folder: Path, name: str) -> dict[str, Any]:
    """Instructions of one inference by each engine, on each of the CPUs."""
    entry = MODELS[name]
    inputs = entry.example_inputs(1)
    models = quantize(folder, name)
    figures = {}
    for cpu, (target, features) in CPUS.items():
        calibration = [*entry.calibration(64 if name.startswith("resnet20") else 16)]
        artifact = graphc.compile(entry.build(), target, inputs, calibration)
        (steps,) = count_steps(artifact, *inputs)
        ours = sum(step.instructions for step in steps)
        theirs = {kind: count(folder, model, folder / f"{name}.npz", cpu, features) for kind, model in models.items()}
        figures[cpu] = {
            "target": target,
            "graphc": ours,
            "graphc: multiply-adds": share(steps),
            "ONNX Runtime": theirs,
            "ratio": round(ours / min(theirs.values()), 3),
        }
    return figures


def quantize(folder: Path, name: str) -> dict[str, Path]:
    """ONNX Runtime's int8 forms of a network, by kind; beside them the network's input."""
    import onnx
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )

    from graphc.exporters.onnx import export

    entry = MODELS[name]
    inputs = entry.example_inputs(1)
    plain = export(graphc.trace(entry.build(), inputs)).SerializeToString()
    names = [item.name for item in onnx.load_from_string(plain).graph.input]
    feeds = [
        {key: leaf.numpy() for key, leaf in zip(names, batch, strict=True)}
        for batch in [inputs, *entry.calibration(16, 1)]
        if [leaf.shape for leaf in batch] == [leaf.shape for leaf in inputs]
    ]
    np.savez(folder / f"{name}.npz", **feeds[0])

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self.feeds, None)

    source = folder / f"{name}.onnx"
    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(source)
    InferenceSession(plain, options, providers=["CPUExecutionProvider"])
    found = {}
    for kind, activations in (("u8s8", QuantType.QUInt8), ("s8s8", QuantType.QInt8)):
        found[kind] = folder / f"{name}.{kind}.onnx"
        quantize_static(
            source, found[kind], Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=activations, weight_type=QuantType.QInt8,
        )  # fmt: skip
    if inputs[0].dtype == torch.int64:
        found["dynamic"] = folder / f"{name}.dynamic.onnx"
        quantize_dynamic(source, found["dynamic"], per_channel=True, weight_type=QuantType.QInt8)
    return found


def count(folder: Path, model: Path, inputs: Path, cpu: str, features: str) -> int:
    """Instructions of one inference by ONNX Runtime: the least of two, after a first one."""
    root = folder / "root"
    # Its library that looks for CPU features reads the emulating machine's files, and ends there, unless there are
    # others; which kernels it takes follows the emulated CPU.
    (root / "proc").mkdir(exist_ok=True)
    lines = ("processor\t: 0", f"Features\t: {features}", "CPU implementer\t: 0x41", "CPU architecture: 8",
             "CPU variant\t: 0x3", "CPU part\t: 0xd0c", "CPU revision\t: 1")  # fmt: skip
    (root / "proc" / "cpuinfo").write_text("\n".join(lines) + "\n\n")
    cpus = root / "sys/devices/system/cpu"
    (cpus / "cpu0/topology").mkdir(parents=True, exist_ok=True)
    for file in ("possible", "present", "online", "kernel_max", "cpu0/topology/physical_package_id"):
        (cpus / file).write_text("0\n")
    script = folder / "run.py"
    script.write_text(_RUN)
    settings = {"PYTHONHOME": root / "usr", "PYTHONPATH": folder / "site", "PYTHONHASHSEED": 0, "OMP_NUM_THREADS": 1}
    command = [find("arm64"), "-cpu", cpu, "-L", str(root)]
    command += [part for key, value in settings.items() for part in ("-E", f"{key}={value}")]
    command += [str(root / "usr/bin/python3.11"), "-S", "-B", str(script), str(model), str(inputs)]
    with counting(GETPPID) as counter:
        subprocess.run(command, check=True)
        intervals = counter.intervals()
    return min(intervals[3].instructions, intervals[5].instructions)


def prepare(folder: Path) -> None:
    """Download the peer, unless it is there."""
    if (folder / "site" / "onnxruntime").exists():
        return
    state = folder / "apt"
    for part in ("lists/partial", "archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    apt = [
        "apt-get", "-q", "-o", "APT::Architecture=arm64", "-o", "APT::Architectures::=arm64",
        "-o", f"Dir::State={state}", "-o", f"Dir::Cache={state}", "-o", "Dir::State::status=/dev/null",
    ]  # fmt: skip
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *PACKAGES], check=True, cwd=state)
    for package in state.glob("*.deb"):
        subprocess.run(["dpkg", "-x", str(package), str(folder / "root")], check=True)
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in (28, 27, 17)]
    wheels = folder / "wheels"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--python-version=3.11",
    ]
    subprocess.run([*pip, *platforms, "--dest", str(wheels), "onnxruntime==1.32.0", "numpy==2.1.3"], check=True)
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
