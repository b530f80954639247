"""The model that a command line names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import graphc
from graphc.errors import CaptureError
from graphc.graph import Graph
from graphc.tensor_type import DTYPES


def trace(model: str, shapes: Sequence[str]) -> Graph:
    """The graph of `FILE.onnx`, `FILE.py:NAME` or `PACKAGE.MODULE:NAME`.

    NAME is an nn.Module, or a function without arguments that returns one; a pair (module, inputs) brings its own
    inputs, an ExportedProgram its dynamic sizes too. shapes: "1,3,32,32" or "1,16:i64", one for each input. Raises
    CaptureError.
    """
    inputs: Sequence[Any] | None = tuple(_example(shape) for shape in shapes) or None
    if model.endswith(".onnx"):
        return graphc.trace(model, inputs)
    if ":" in model:
        found = _call(_find(model), model)
        if isinstance(found, tuple) and len(found) == 2:
            found, own = found
            inputs = inputs or (own if isinstance(own, tuple | list) else (own,))
        return graphc.trace(found, inputs)
    if model.endswith((".pt2", ".pt", ".pth")):
        raise CaptureError(
            f"'{model}' is not read, because torch may unpickle it, which runs code of the file's choice. Read it in a "
            "function of your own that returns the model, and name that: graphc compile my_models.py:load"
        )
    raise CaptureError(f"'{model}' is no model: give FILE.onnx, FILE.py:NAME or PACKAGE.MODULE:NAME")


def _example(text: str) -> torch.Tensor:
    sizes, _, dtype = text.partition(":")
    if (dtype or "f32") not in DTYPES:
        raise CaptureError(f"shape '{text}': no dtype '{dtype}'; there are {', '.join(DTYPES)}")
    try:
        return torch.zeros([int(size) for size in sizes.split(",") if size], dtype=DTYPES[dtype or "f32"])
    except (ValueError, RuntimeError):
        raise CaptureError(f"cannot read the shape '{text}'; expected sizes such as 1,3,32,32 or 1,16:i64") from None


def _find(model: str) -> Any:
    place, _, name = model.rpartition(":")
    try:
        value = _load(Path(place)) if place.endswith(".py") else _import(place)
        for part in name.split("."):
            value = getattr(value, part)
    except Exception as error:
        raise CaptureError(f"cannot load '{model}': {type(error).__name__}: {error}") from error
    return value


def _load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"'{path}' is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module


def _import(name: str) -> Any:
    sys.path.insert(0, "")  # as `python -m` does
    return importlib.import_module(name)


def _call(value: Any, model: str) -> Any:
    if isinstance(value, torch.nn.Module) or not isinstance(value, Callable):  # type: ignore[arg-type]
        return value
    try:
        return value()
    except Exception as error:
        raise CaptureError(f"'{model}' failed: {type(error).__name__}: {error}") from error
