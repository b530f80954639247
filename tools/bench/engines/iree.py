"""IREE from ONNX, with data tiling at its highest level of optimization: fp32."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch

from graphc.target import Target
from graphc.tools.bench.case import Case
from graphc.tools.bench.engines import Bind, Run, onnx_file


def prepare(case: Case) -> None:
    from iree.compiler import tools

    source, imported = case.folder / "float.onnx", case.folder / "float.mlir"
    onnx_file.export(case, source)
    command = [sys.executable, "-m", "iree.compiler.tools.import_onnx", str(source), "-o", str(imported)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    target = Target.parse("host")
    flags = [
        "--iree-opt-level=O3",
        "--iree-opt-data-tiling=true",
        f"--iree-llvmcpu-target-triple={target.triple}",
        # By features: on a virtual machine LLVM may take the CPU for an older one.
        "--iree-llvmcpu-target-cpu-features=" + ",".join(f"+{feature}" for feature in target.features),
        "--iree-llvmcpu-stack-allocation-limit=1048576",
    ]
    code = tools.compile_file(str(imported), target_backends=["llvm-cpu"], input_type="onnx", extra_args=flags)
    (case.folder / "model.vmfb").write_bytes(code)
    source.unlink()
    imported.unlink()


def load(case: Case) -> Bind:
    from iree import runtime

    runtime.flags.parse_flags(f"--task_topology_group_count={case.threads}")
    config = runtime.Config("local-task" if case.threads > 1 else "local-sync")
    module = runtime.VmModule.mmap(config.vm_instance, str(case.folder / "model.vmfb"))
    loaded = runtime.load_vm_module(module, config)
    (name,) = (name for name in module.function_names if not name.startswith("__") and not name.endswith("$async"))

    def bind(inputs: tuple[torch.Tensor, ...]) -> Run:
        given = [runtime.asdevicearray(config.device, x.numpy()) for x in inputs]

        def run() -> list[Any]:
            outputs = loaded[name](*given)
            return [x.to_host() for x in (outputs if isinstance(outputs, tuple | list) else [outputs])]

        return run

    return bind
