"""Tensors on the command line: `.npy` and `.npz` files, read without pickle."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphc.errors import InputError


def read(arguments: Sequence[str], names: Sequence[str]) -> list[NDArray[Any]]:
    """One array for each of the model's inputs `names`, in their order.

    An argument is `FILE.npy`, `NAME=FILE.npy` or `FILE.npz`. Arrays whose name is an input's go to that input; where
    none has such a name, they go by their order. Raises InputError that lists the inputs.
    """
    named: dict[str, NDArray[Any]] = {}
    unnamed: list[NDArray[Any]] = []
    for argument in arguments:
        label, _, path = argument.rpartition("=")
        if label not in names:
            label, path = "", argument
        for key, array in _load(path).items():
            if (label or key) in names:
                named[label or key] = array
            else:
                unnamed.append(array)
    given = unnamed if not named else [named[name] for name in names if name in named]
    if (named and unnamed) or len(given) != len(names):
        found = ", ".join([*named, *(["without a name"] * len(unnamed))]) or "none"
        raise InputError(f"the model takes {len(names)} inputs: {', '.join(names)}; the files give: {found}")
    return given


def _load(path: str) -> dict[str, NDArray[Any]]:
    """The arrays of a file; that of an `.npy` file has no name."""
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return {"": content}
        with content:
            return {key: content[key] for key in content.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read '{path}' as .npy or .npz: {error}") from None
