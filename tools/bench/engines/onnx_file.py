"""A workload as an ONNX file, as PyTorch's own exporter writes it: what the engines that read ONNX are given."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch

from graphc.tools.bench.case import Case


def export(case: Case, path: Path) -> None:
    """Write the network with its shapes fixed and its weights inside."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(case.work.build(), case.inputs, dynamo=True, optimize=True, verbose=False)
        assert program is not None
        program.save(str(path), external_data=False)
