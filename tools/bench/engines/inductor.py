"""torch.compile with Inductor: weights frozen, templates tuned; fp32, or bf16 by converting the network."""

from __future__ import annotations

import os

import torch

from graphc.tools.bench.case import Case
from graphc.tools.bench.engines import Bind, Run, eager


def prepare(case: Case) -> None:
    """Nothing to do: the code depends on the threads. What `load` compiles is kept in the folder."""


def load(case: Case) -> Bind:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(case.folder / f"threads-{case.threads}")
    from torch._inductor import config

    config.freezing = True
    config.max_autotune = True
    torch.set_num_threads(case.threads)
    dtype = torch.bfloat16 if case.precision == "bf16" else torch.float32
    network = case.work.build().to(dtype)
    if any(x.dim() == 4 for x in case.inputs):
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    compiled = torch.compile(network)

    def bind(inputs: tuple[torch.Tensor, ...]) -> Run:
        run = eager.binding(compiled)(tuple(_convert(x, dtype) for x in inputs))
        run()
        return run

    return bind


def _convert(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if not x.is_floating_point():
        return x
    return x.to(dtype, memory_format=torch.channels_last) if x.dim() == 4 else x.to(dtype)
