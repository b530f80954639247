"""TVM as it comes, without tuning: its own default pipeline for a CPU, fp32."""

from __future__ import annotations

import os
from typing import Any

import torch

from graphc.target import Target
from graphc.tools.bench.case import Case
from graphc.tools.bench.engines import Bind, Run


def prepare(case: Case) -> None:
    import tvm
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program

    target = Target.parse("host")
    program = torch.export.export(case.work.build(), case.inputs).run_decompositions()
    module = from_exported_program(program, keep_params_as_input=False, unwrap_unit_return_tuple=True)
    features = [f"+{feature}" for feature in target.features]
    chip = tvm.target.Target({"kind": "llvm", "mtriple": target.triple, "mattr": features})
    built = tvm.compile(module, target=chip, relax_pipeline=relax.get_default_pipeline(chip))
    built.export_library(str(case.folder / "model.so"))


def load(case: Case) -> Bind:
    os.environ["TVM_NUM_THREADS"] = str(case.threads)
    import tvm
    from tvm import relax

    machine = relax.VirtualMachine(tvm.runtime.load_module(str(case.folder / "model.so")), tvm.cpu())

    def bind(inputs: tuple[torch.Tensor, ...]) -> Run:
        given = [tvm.runtime.tensor(x.numpy()) for x in inputs]

        def run() -> list[Any]:
            outputs = machine["main"](*given)
            return [x.numpy() for x in ([outputs] if isinstance(outputs, tvm.runtime.Tensor) else outputs)]

        return run

    return bind
