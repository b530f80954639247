"""Read an ONNX file as a checked ModelProto: nothing outside its own folder is opened, and nothing runs.

Shapes are checked when the model is traced, node by node: onnx's own strict inference rejects valid models (in 1.21,
MeanVarianceNormalization with its default axes), and its lenient one accepts wrong ones.
"""

from __future__ import annotations

import os
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, checker, external_data_helper, inliner

from graphc.errors import CaptureError
from graphc.exporters.onnx_functions import DOMAIN, NAMES, function

OLDEST_OPSET = 9


def read(source: str | os.PathLike[str] | onnx.ModelProto) -> onnx.ModelProto:
    """A checked model with its weights inside and local functions inlined.

    Raises CaptureError for a file that is missing, truncated, invalid or of a too old operator set, and for weights
    that lie outside the model's own folder.
    """
    if isinstance(source, onnx.ModelProto):
        model, name, folder = onnx.ModelProto(), source.graph.name or "model", None
        model.CopyFrom(source)
    else:
        path = Path(source)
        name, folder = path.name, path.parent
        try:
            model = onnx.load(path, load_external_data=False)
        except OSError as error:
            raise CaptureError(f"cannot read '{name}': {error.strerror}") from error
        except DecodeError as error:
            raise CaptureError(f"'{name}' is no ONNX model, or is truncated: {error}") from error
    opset = default_opset(model)
    if not model.HasField("graph") or opset == 0:
        raise CaptureError(f"'{name}' is no ONNX model: it has no graph, or imports no operator set")
    if opset < OLDEST_OPSET:
        raise CaptureError(
            f"'{name}' uses ONNX operator set {opset}; legal: {OLDEST_OPSET} and up "
            "(onnx.version_converter.convert_version raises it)"
        )
    _load_external(model, name, folder)
    try:
        checker.check_model(model)
        # graphc's own operators stay calls, unless the file means something else by them.
        kept = [
            (f.domain, f.name)
            for f in model.functions
            if f.domain == DOMAIN and f.name in NAMES and f == function(f.name)
        ]
        model = inliner.inline_selected_functions(model, kept, exclude=True)
    except (checker.ValidationError, RuntimeError, ValueError) as error:
        raise CaptureError(f"'{name}' is not valid ONNX: {error}") from error
    return model


def default_opset(model: onnx.ModelProto) -> int:
    """The version of the standard operator set that the model imports, 0 for none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _load_external(model: onnx.ModelProto, name: str, folder: Path | None) -> None:
    """Read the weights that are stored in files beside the model."""
    for tensor in external_data_helper._get_all_tensors(model):
        if not external_data_helper.uses_external_data(tensor):
            continue
        fields = {entry.key: entry.value for entry in tensor.external_data}
        location, what = fields.get("location", ""), f"weight '{tensor.name}' of '{name}'"
        if folder is None:
            raise CaptureError(
                f"{what} is stored in the file '{location}': pass the model's path instead of a ModelProto"
            )
        path = folder / location
        if os.path.isabs(location) or not path.resolve().is_relative_to(folder.resolve()):
            raise CaptureError(f"{what} is stored in '{location}', which is not in the model's own folder")
        try:
            offset, length = int(fields.get("offset", 0)), int(fields.get("length", -1))
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                length = size - offset if length < 0 else length
                if offset < 0 or offset + length > size:
                    raise CaptureError(f"{what} lies beyond the end of '{location}', which is truncated")
                file.seek(offset)
                tensor.raw_data = file.read(length)
        except (OSError, ValueError) as error:
            raise CaptureError(f"{what} cannot be read from '{location}': {error}") from error
        del tensor.external_data[:]
        tensor.data_location = TensorProto.DEFAULT
