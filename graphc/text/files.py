"""Texts with their weights in a folder: each tensor once, by the digest of its contents."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import torch

from graphc.errors import ParseError
from graphc.graph import Graph
from graphc.text.parsing import parse
from graphc.text.printing import digest, dump


def save(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write the text to `path` and each tensor once to `weights/<digest>.safetensors` beside it."""
    from safetensors.torch import save_file

    path = Path(path)
    folder = path.parent / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    for tensor in graph.weights.values():
        file = folder / f"{digest(tensor)}.safetensors"
        if not file.exists():
            beside = file.with_suffix(".part")
            save_file({"tensor": tensor.detach().contiguous().clone()}, beside)
            beside.rename(file)
    beside = path.with_suffix(".part")
    beside.write_text(dump(graph))
    beside.rename(path)


def read(path: str | os.PathLike[str]) -> Graph:
    """The graph that `save` wrote."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        raise ParseError(f"'{path.name}' is no text") from None
    weights: dict[str, torch.Tensor] = {}
    for name, number in re.findall(r'= weight ("(?:[^"\\]|\\.)*") #([0-9a-f]{16}) :', text):
        file = path.parent / "weights" / f"{number}.safetensors"
        if not file.exists():
            raise ParseError(
                f"'{path.name}' needs the weight {name} in 'weights/{number}.safetensors', which is absent"
            )
        try:
            weights[json.loads(name)] = load_file(file)["tensor"]
        except (SafetensorError, KeyError) as error:
            raise ParseError(f"cannot read 'weights/{file.name}' beside '{path.name}': {error}") from None
    return parse(text, weights)
