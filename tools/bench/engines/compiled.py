"""graphc itself."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file

import graphc
from graphc.calibration import batches
from graphc.pipeline import CLEAN, FINISH, PRESETS, PassContext, pipeline
from graphc.tools.bench.case import Case
from graphc.tools.bench.engines import Bind, Run

# "vq2" and "vq1" are vector quantization at 2 and 1 bits a weight, through tables that are built in the step.
PIPELINES = {
    "fp32": PRESETS["float"],
    "bf16": PRESETS["bf16"],
    "int8": PRESETS["int8"],
    "int8 weights": f'{CLEAN},compress{{format="linear(bits=8,group=32)"}},quantize_activations,{FINISH}',
    "int4 weights": f'{CLEAN},compress{{format="linear(bits=4,group=32)"}},quantize_activations,{FINISH}',
    "vq2 weights": f'{CLEAN},compress{{format="vector(d=4,shared=true)"}},tabulate,{FINISH}',
    "vq1 weights": f'{CLEAN},compress{{format="vector(d=8,shared=true)"}},tabulate,{FINISH}',
}


def prepare(case: Case) -> None:
    quantized = case.work.kind == "decode" and case.precision not in ("fp32", "bf16")
    passes = PIPELINES[f"{case.precision} weights" if quantized else case.precision]
    graph = graphc.trace(case.work.build(), case.inputs)
    data = batches(graph, case.calibration()) if case.precision == "int8" and not quantized else []
    transformed = pipeline(passes.removesuffix(",fuse_operators")).run(graph, PassContext(calibration=data))
    outputs = transformed.outputs.flatten(transformed.run(*case.inputs))
    save_file({str(index): x.contiguous() for index, x in enumerate(outputs)}, case.folder / "reference.safetensors")
    graphc.compile(transformed, "host", pipeline="fuse_operators").save(case.folder / "model.graphc")


def load(case: Case) -> Bind:
    artifact = graphc.load(case.folder / "model.graphc", case.threads)

    def bind(inputs: tuple[torch.Tensor, ...]) -> Run:
        def run() -> list[object]:
            outputs = artifact.run(*inputs)
            return list(outputs) if isinstance(outputs, tuple) else [outputs]

        return run

    return bind


def reference(case: Case) -> list[torch.Tensor]:
    """The compressed graph by PyTorch: exactly what the artifact has to compute, up to the rounding of float sums."""
    found = load_file(case.folder / "reference.safetensors")
    return [found[str(index)] for index in range(len(found))]
