"""PyTorch as it is, operator by operator: the reference that every engine's outputs are compared with."""

from __future__ import annotations

from pathlib import Path

import torch

from graphc.tools.bench.engines import Run
from graphc.tools.bench.workloads import Workload

PRECISIONS = {"vision": ("fp32",), "text": ("fp32",), "decode": ("fp32",)}


def prepare(work: Workload, batch: int, precision: str, folder: Path) -> None:
    """Nothing to do."""


def load(work: Workload, batch: int, precision: str, threads: int, folder: Path) -> Run:
    torch.set_num_threads(threads)
    network, inputs = work.build(), work.inputs(batch)

    @torch.inference_mode()
    def run() -> list[torch.Tensor]:
        outputs = network(*inputs)
        return list(outputs) if isinstance(outputs, tuple) else [outputs]

    return run
