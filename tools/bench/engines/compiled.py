"""graphc itself."""

from __future__ import annotations

import torch

import graphc
from graphc.tools.bench.case import Case
from graphc.tools.bench.engines import Bind, Run

# What `graphc.compile` is told for each precision.
PIPELINES = {"fp32": "float", "int8": "int8"}


def prepare(case: Case) -> None:
    calibration = case.calibration() if case.precision == "int8" else None
    graphc.compile(case.work.build(), "host", case.inputs, calibration, pipeline=PIPELINES[case.precision]).save(
        case.folder / "model.graphc"
    )


def load(case: Case) -> Bind:
    artifact = graphc.load(case.folder / "model.graphc", case.threads)

    def bind(inputs: tuple[torch.Tensor, ...]) -> Run:
        def run() -> list[object]:
            outputs = artifact.run(*inputs)
            return list(outputs) if isinstance(outputs, tuple) else [outputs]

        return run

    return bind
