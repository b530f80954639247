"""ExecuTorch with XNNPACK: fp32, and int8 by PT2E quantization with XNNPACK's quantizer."""

from __future__ import annotations

from typing import Any

import torch

from graphc.tools.bench.case import Case
from graphc.tools.bench.engines import Bind, Run


def prepare(case: Case) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(case.work.build(), case.inputs, strict=True)
    if case.precision == "int8":
        program = torch.export.export(_quantize(case, program), case.inputs)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    (case.folder / "model.pte").write_bytes(lowered.buffer)


def _quantize(case: Case, program: Any) -> Any:
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=case.work.kind == "text")
    observed = prepare_pt2e(program.module(), XNNPACKQuantizer().set_global(config))
    with torch.no_grad():
        for inputs in case.calibration():
            observed(*inputs)
    return convert_pt2e(observed)


def load(case: Case) -> Bind:
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(case.threads)
    method = Runtime.get().load_program(case.folder / "model.pte").load_method("forward")
    assert method is not None

    def bind(inputs: tuple[torch.Tensor, ...]) -> Run:
        return lambda: list(method.execute(list(inputs)))

    return bind
