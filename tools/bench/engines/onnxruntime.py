"""ONNX Runtime: fp32; int8 by its static or (text) dynamic quantization; weights alone by MatMulNBits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import torch
from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions, quantization

from graphc.tools.bench.case import Case
from graphc.tools.bench.engines import Bind, Run, onnx_file


class _Batches(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, names: list[str], batches: list[Any]) -> None:
        self.names, self.batches = names, iter(batches)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else {n: x.numpy() for n, x in zip(self.names, batch, strict=True)}


def prepare(case: Case) -> None:
    source, result = case.folder / "float.onnx", case.folder / "model.onnx"
    onnx_file.export(case, source)
    if case.precision == "fp32":
        if case.work.kind == "text":
            _fuse_transformer(source)
        source.rename(result)
    elif case.work.kind == "decode":
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

        # Accuracy level 4: activations are quantized to int8 as they come, which is its fastest.
        quantizer = MatMulNBitsQuantizer(
            onnx.load(str(source)), int(case.precision[3:]), block_size=32, is_symmetric=True, accuracy_level=4
        )
        quantizer.process()
        onnx.save(quantizer.model.model, str(result))
    elif case.work.kind == "static":
        _quantize_statically(case, source, result)
    else:
        _fuse_transformer(source)
        # As its documentation advises for transformers; activations get their scales at run time.
        quantization.quantize_dynamic(source, result, per_channel=True, weight_type=quantization.QuantType.QInt8)
    source.unlink(missing_ok=True)


def _fuse_transformer(path: Path) -> None:
    """Attention, GELU and layer normalization as single operators, by ONNX Runtime's own tool."""
    from onnxruntime.transformers import optimizer

    fused = optimizer.optimize_model(str(path), model_type="bert", num_heads=12, hidden_size=384, opt_level=0)
    fused.save_model_to_file(str(path))


def _quantize_statically(case: Case, source: Path, result: Path) -> None:
    """QDQ, weights per channel, as its documentation advises for CPUs."""
    # Optimized before it is quantized: else ONNX Runtime uses few of its integer kernels and is five times slower.
    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_BASIC
    optimized = source.with_name("optimized.onnx")
    options.optimized_model_filepath = str(optimized)
    names = [item.name for item in InferenceSession(source, options, providers=["CPUExecutionProvider"]).get_inputs()]
    quantization.quantize_static(
        optimized, result, _Batches(names, case.calibration()), quant_format=quantization.QuantFormat.QDQ,
        per_channel=True, activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    optimized.unlink()


def load(case: Case) -> Bind:
    options = SessionOptions()
    options.intra_op_num_threads = case.threads
    options.inter_op_num_threads = 1
    session = InferenceSession(case.folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_inputs()]

    def bind(inputs: tuple[torch.Tensor, ...]) -> Run:
        feeds = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return lambda: list(session.run(None, feeds))

    return bind
