"""One thing to measure: a workload at a batch, in one precision, by one engine, on so many threads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from graphc.tools.bench.workloads import Inputs, Workload


@dataclass(frozen=True)
class Case:
    """`folder` is the engine's own, for this workload, batch and precision: what `prepare` leaves there `load` finds.

    The inputs are the same for every engine; they are made once and kept beside the folder.
    """

    work: Workload
    batch: int
    precision: str
    threads: int
    folder: Path

    @property
    def inputs(self) -> Inputs:
        path = self.folder.parent / f"{self.work.name}-{self.batch}.inputs.safetensors"
        if not path.exists():
            made = {str(index): x.contiguous() for index, x in enumerate(self.work.inputs(self.batch))}
            beside = path.with_suffix(".part")
            save_file(made, beside)
            beside.rename(path)
        stored = load_file(path)
        return tuple(stored[str(index)] for index in range(len(stored)))

    def calibration(self, count: int = 64) -> list[Inputs]:
        """At most `count` items in batches of the case's, each of the same item again and again."""
        items = self.work.calibration()[: max(8, count // self.batch)]
        return [tuple(repeated(x, self.batch) for x in item) for item in items]


def repeated(x: torch.Tensor, batch: int) -> torch.Tensor:
    """[1, ...] -> [batch, ...]"""
    return x.repeat(batch, *[1] * (x.dim() - 1)) if batch > 1 else x
