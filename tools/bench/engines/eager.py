"""PyTorch as it is, operator by operator: the reference that every engine's outputs are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from graphc.tools.bench.case import Case
from graphc.tools.bench.engines import Bind, Run


def prepare(case: Case) -> None:
    """Nothing to do."""


def load(case: Case) -> Bind:
    torch.set_num_threads(case.threads)
    return binding(case.work.build())


def binding(network: Callable[..., Any]) -> Bind:
    """Runs of a torch module, or of what was compiled from one."""

    def bind(inputs: tuple[torch.Tensor, ...]) -> Run:
        @torch.inference_mode()
        def run() -> list[torch.Tensor]:
            outputs = network(*inputs)
            return list(outputs) if isinstance(outputs, tuple) else [outputs]

        return run

    return bind
