"""Models in: PyTorch modules, exported programs, ONNX files, all through torch.export into one Graph."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from graphc.errors import CaptureError
from graphc.graph import Graph


def trace(
    model: Any,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    name: str | None = None,
) -> Graph:
    """The Graph of a model: an nn.Module, an ExportedProgram, an `.onnx` path or an onnx.ModelProto.

    example_inputs, example_kwargs: tensors of the shapes and dtypes to compile for (for an nn.Module; the other kinds
    know their own). dynamic_shapes: as torch.export takes it, each size a `torch.export.Dim` with a maximum.
    Raises CaptureError or UnsupportedOperatorError.

    >>> graph = graphc.trace(torch.nn.Linear(4, 2), (torch.zeros(1, 4),))
    """
    from torch import nn
    from torch.export import ExportedProgram

    from graphc.frontends import torch_export

    if isinstance(model, Graph):
        return model
    if isinstance(model, ExportedProgram):
        return torch_export.from_exported_program(model, name or "model")
    if isinstance(model, nn.Module):
        if example_inputs is None and not example_kwargs:
            raise CaptureError(f"tracing {type(model).__name__} needs example_inputs: graphc.trace(model, (x,))")
        return torch_export.capture(model, tuple(example_inputs or ()), example_kwargs, dynamic_shapes, name)
    if isinstance(model, str | os.PathLike) or type(model).__name__ == "ModelProto":
        from graphc.frontends import onnx

        if example_kwargs:
            raise CaptureError("an ONNX model takes its inputs by position: pass example_inputs, not example_kwargs")
        return onnx.trace(model, example_inputs, dynamic_shapes, name)
    raise CaptureError(
        f"cannot trace a {type(model).__name__}: give an nn.Module, an ExportedProgram, an .onnx path or a ModelProto"
    )
