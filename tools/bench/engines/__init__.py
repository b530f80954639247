"""The engines of the bench, one file each.

An engine's module is imported only in a process of its own. It has

    prepare(case)               what is slow and does not depend on the threads: leaves files in the case's folder
    load(case) -> Bind          makes the model ready to run on the case's threads
    reference(case) -> outputs  optional: what PyTorch computes with the weights as the engine stores them

Bind takes a call's inputs and returns a Run, which is called without arguments and returns the outputs, in the order of
the torch module, as arrays or tensors. What can be done to the inputs beforehand, an engine does when it binds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Run = Callable[[], list[Any]]
Bind = Callable[[tuple[Tensor, ...]], Run]


@dataclass(frozen=True)
class Engine:
    """`package` is the distribution whose version is stated; `precisions` are those of each kind of workload.

    Precisions of few bits name the nominal width: "int4" is any 4-bit format with scales of groups, "vq2" vector
    quantization at 2 bits a weight.
    """

    name: str
    package: str
    module: str
    precisions: Mapping[str, tuple[str, ...]]


def _engine(name: str, package: str, module: str, static: str, text: str, decode: str) -> Engine:
    precisions = {"static": static, "text": text, "decode": decode}
    kinds = {kind: tuple(names.split()) for kind, names in precisions.items()}
    return Engine(name, package, f"{__name__}.{module}", kinds)


EAGER = _engine("torch eager", "torch", "eager", "fp32", "fp32", "fp32")
ENGINES = {
    engine.name: engine
    for engine in (
        _engine("graphc", "graphc", "compiled", "fp32 bf16 int8", "fp32 bf16 int8", "fp32 bf16 int8 int4 vq2 vq1"),
        _engine("ONNX Runtime", "onnxruntime", "onnxruntime", "fp32 int8", "fp32 int8", "fp32 int8 int4"),
        _engine("OpenVINO", "openvino", "openvino", "fp32 bf16 int8", "fp32 bf16 int8", "fp32 bf16 int8 int4"),
        _engine("Inductor", "torch", "inductor", "fp32 bf16", "fp32 bf16", "fp32 bf16"),
        _engine("ExecuTorch", "executorch", "executorch", "fp32 int8", "fp32 int8", "fp32"),
        _engine("llama.cpp", "llama-cpp-python", "llama_cpp", "", "", "bf16 int8 int4 int2"),
        _engine("IREE", "iree-base-compiler", "iree", "fp32", "fp32", "fp32"),
        _engine("TVM untuned", "apache-tvm", "tvm", "fp32", "fp32", "fp32"),
        EAGER,
    )
}
