"""A workload as an ONNX file, as PyTorch's own exporter writes it: what the engines that read ONNX are given."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch

from graphc.tools.bench.workloads import Workload


def export(work: Workload, batch: int, path: Path) -> None:
    """Write the network with its shapes fixed, weights inside or (above 1.5 GB) beside the file."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(work.build(), work.inputs(batch), dynamo=True, optimize=True, verbose=False)
        assert program is not None
        program.save(str(path), external_data=False)
