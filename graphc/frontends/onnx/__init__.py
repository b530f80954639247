"""ONNX in: a model becomes a torch.nn.Module, which torch.export captures like any other.

reading      a file as a checked ModelProto          module       a ModelProto as a module of small modules
operator     how an operator is written down         known        shapes and constants, kept out of the graph
attention, elementwise, indexing, layers, layout, quantized, recurrent, reduction, resize: the operators
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import onnx

from graphc.errors import CaptureError
from graphc.frontends import torch_export
from graphc.frontends.onnx import (  # noqa: F401  (importing them enters their operators)
    attention,
    elementwise,
    indexing,
    known,
    layers,
    layout,
    quantized,
    recurrent,
    reduction,
    resize,
)
from graphc.frontends.onnx.module import OnnxModule
from graphc.frontends.onnx.reading import read
from graphc.graph import Graph

__all__ = ["OnnxModule", "load", "trace"]


def load(source: str | os.PathLike[str] | onnx.ModelProto) -> OnnxModule:
    """An ONNX file or ModelProto as a module for torch.export. Raises CaptureError and UnsupportedOperatorError."""
    model = read(source)
    try:
        return OnnxModule(model)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # names that are no text, weights cut short
        raise CaptureError(f"the ONNX model is damaged: {type(error).__name__}: {error}") from error


def trace(
    source: str | os.PathLike[str] | onnx.ModelProto,
    example_inputs: Sequence[Any] | None = None,
    dynamic_shapes: Any = None,
    name: str | None = None,
) -> Graph:
    """The Graph of an ONNX model; layer paths are the ONNX nodes' names, weights keep theirs.

    example_inputs: needed where the model leaves sizes open. dynamic_shapes: as torch.export takes it, by position or
    by input name. Raises CaptureError and UnsupportedOperatorError.
    """
    module = load(source)
    inputs = module.example_inputs() if example_inputs is None else tuple(example_inputs)
    return torch_export.capture(module, inputs, dynamic_shapes=dynamic_shapes, name=name or module.name)
