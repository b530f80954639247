"""graphc itself."""

from __future__ import annotations

from pathlib import Path

import graphc
from graphc.tools.bench.engines import Run
from graphc.tools.bench.workloads import Workload

PRECISIONS = {"vision": ("fp32", "int8"), "text": ("fp32", "int8"), "decode": ("fp32",)}


def prepare(work: Workload, batch: int, precision: str, folder: Path) -> None:
    calibration = work.calibration() if precision == "int8" else None
    if calibration and batch > 1:
        calibration = [tuple(x.repeat(batch, *[1] * (x.dim() - 1)) for x in inputs) for inputs in calibration[:16]]
    graphc.compile(work.build(), "host", work.inputs(batch), calibration).save(folder / "model.graphc")


def load(work: Workload, batch: int, precision: str, threads: int, folder: Path) -> Run:
    artifact = graphc.load(folder / "model.graphc", threads)
    inputs = work.inputs(batch)

    def run() -> list[object]:
        outputs = artifact.run(*inputs)
        return list(outputs) if isinstance(outputs, tuple) else [outputs]

    return run


def version() -> str:
    return graphc.__version__
