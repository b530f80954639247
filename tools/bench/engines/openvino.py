"""OpenVINO with the latency hint: fp32 and bf16 by its precision hint, int8 (and int4 weights) by NNCF."""

from __future__ import annotations

from typing import Any

import openvino
import torch

from graphc.tools.bench.case import Case
from graphc.tools.bench.engines import Bind, Run, onnx_file


def prepare(case: Case) -> None:
    source = case.folder / "float.onnx"
    onnx_file.export(case, source)
    model = openvino.convert_model(source)
    if case.precision in ("int8", "int4"):
        model = _compress(case, model)
    openvino.save_model(model, case.folder / "model.xml", compress_to_fp16=False)
    source.unlink()


def _compress(case: Case, model: Any) -> Any:
    import nncf

    if case.work.kind == "decode":  # weights only, as NNCF advises for language models
        if case.precision == "int8":
            return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)
        return nncf.compress_weights(
            model, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=32, ratio=1.0, all_layers=True
        )
    names = [item.get_any_name() for item in model.inputs]
    data = nncf.Dataset(case.calibration(), lambda item: {n: x.numpy() for n, x in zip(names, item, strict=True)})
    kind = nncf.ModelType.TRANSFORMER if case.work.kind == "text" else None
    return nncf.quantize(model, data, model_type=kind, subset_size=64)


def load(case: Case) -> Bind:
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": case.threads,
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": "bf16" if case.precision == "bf16" else "f32",
    }
    compiled = openvino.Core().compile_model(case.folder / "model.xml", "CPU", settings)

    def bind(inputs: tuple[torch.Tensor, ...]) -> Run:
        request = compiled.create_infer_request()
        for index, x in enumerate(inputs):
            request.set_input_tensor(index, openvino.Tensor(x.numpy(), shared_memory=True))

        def run() -> list[Any]:
            assert inputs  # held here: OpenVINO reads them where they lie
            request.infer()
            return [request.get_output_tensor(index).data for index in range(len(compiled.outputs))]

        return run

    return bind
