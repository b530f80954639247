"""OpenVINO with the latency hint: fp32 and bf16 by its precision hint, int8 (and int4 weights) by NNCF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino

from graphc.tools.bench.engines import Run, onnx_file
from graphc.tools.bench.workloads import Workload

PRECISIONS = {
    "vision": ("fp32", "bf16", "int8"),
    "text": ("fp32", "bf16", "int8"),
    "decode": ("fp32", "bf16", "int8", "int4"),
}


def prepare(work: Workload, batch: int, precision: str, folder: Path) -> None:
    source = folder / "float.onnx"
    onnx_file.export(work, batch, source)
    model = openvino.convert_model(source)
    if precision in ("int8", "int4"):
        model = _compress(work, batch, precision, model)
    openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    source.unlink()


def _compress(work: Workload, batch: int, precision: str, model: Any) -> Any:
    import nncf

    if work.kind == "decode":  # weights only, as NNCF advises for language models
        mode = nncf.CompressWeightsMode.INT8_SYM if precision == "int8" else nncf.CompressWeightsMode.INT4_SYM
        group = {} if precision == "int8" else {"group_size": 32, "all_layers": True}
        return nncf.compress_weights(model, mode=mode, **group)
    batches = [tuple(x.repeat(batch, *[1] * (x.dim() - 1)).numpy() for x in inputs) for inputs in work.calibration()]
    kind = nncf.ModelType.TRANSFORMER if work.kind == "text" else None
    names = [item.get_any_name() for item in model.inputs]
    data = nncf.Dataset(batches, lambda item: dict(zip(names, item, strict=True)))
    return nncf.quantize(model, data, model_type=kind, subset_size=max(8, 64 // batch))


def load(work: Workload, batch: int, precision: str, threads: int, folder: Path) -> Run:
    core = openvino.Core()
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
    }
    compiled = core.compile_model(folder / "model.xml", "CPU", settings)
    request = compiled.create_infer_request()
    for index, x in enumerate(work.inputs(batch)):
        request.set_input_tensor(index, openvino.Tensor(x.numpy(), shared_memory=True))

    def run() -> list[Any]:
        request.infer()
        return [request.get_output_tensor(index).data for index in range(len(compiled.outputs))]

    return run


def version() -> str:
    return str(openvino.__version__)
