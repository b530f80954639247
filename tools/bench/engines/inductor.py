"""torch.compile with Inductor: weights frozen; fp32, or bf16 by converting the network."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from graphc.tools.bench.engines import Run
from graphc.tools.bench.workloads import Workload

PRECISIONS = {"vision": ("fp32", "bf16"), "text": ("fp32", "bf16"), "decode": ("fp32", "bf16")}


def prepare(work: Workload, batch: int, precision: str, folder: Path) -> None:
    """Nothing to do: the code depends on the threads. What `load` compiles is kept in the folder."""


def load(work: Workload, batch: int, precision: str, threads: int, folder: Path) -> Run:
    from torch._inductor import config

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / f"{threads} threads")
    torch.set_num_threads(threads)
    config.freezing = True
    config.max_autotune = True
    config.cpp.weight_prepack = True
    network, inputs = work.build(), work.inputs(batch)
    if work.kind == "vision":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = tuple(x.to(memory_format=torch.channels_last) for x in inputs)
    if precision == "bf16":
        network = network.bfloat16()
        inputs = tuple(x.bfloat16() if x.is_floating_point() else x for x in inputs)
    compiled = torch.compile(network)

    @torch.inference_mode()
    def run() -> list[torch.Tensor]:
        outputs = compiled(*inputs)
        return list(outputs) if isinstance(outputs, tuple) else [outputs]

    run()
    return run


def version() -> str:
    return str(torch.__version__)
