"""ExecuTorch with XNNPACK: fp32, and int8 by PT2E quantization with XNNPACK's quantizer."""

from __future__ import annotations

from importlib.metadata import version as _version
from pathlib import Path
from typing import Any

import torch

from graphc.tools.bench.engines import Run
from graphc.tools.bench.workloads import Workload

PRECISIONS = {"vision": ("fp32", "int8"), "text": ("fp32", "int8"), "decode": ("fp32",)}


def prepare(work: Workload, batch: int, precision: str, folder: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    inputs = work.inputs(batch)
    program = torch.export.export(work.build(), inputs, strict=True)
    if precision == "int8":
        program = torch.export.export(_quantize(work, batch, program), inputs)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    (folder / "model.pte").write_bytes(lowered.buffer)


def _quantize(work: Workload, batch: int, program: Any) -> Any:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    dynamic = work.kind == "text"
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    observed = prepare_pt2e(program.module(), XNNPACKQuantizer().set_global(config))
    with torch.no_grad():
        for inputs in work.calibration()[: max(8, 64 // batch)]:
            observed(*(x.repeat(batch, *[1] * (x.dim() - 1)) for x in inputs))
    return convert_pt2e(observed)


def load(work: Workload, batch: int, precision: str, threads: int, folder: Path) -> Run:
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(threads)
    method = Runtime.get().load_program(folder / "model.pte").load_method("forward")
    assert method is not None
    inputs = list(work.inputs(batch))
    return lambda: list(method.execute(inputs))


def version() -> str:
    return _version("executorch")
