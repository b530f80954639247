"""Where a value lies in memory, and how."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from graphc.tensor_type import Size


@dataclass(frozen=True)
class Halo:
    """Rows and columns around an image that hold nought for its readers, so that windows may reach over the edge.

    `fill`: the value that means nought, as the image's own type says it.
    """

    before: tuple[int, int]
    after: tuple[int, int]
    fill: int


@dataclass(frozen=True)
class Placement:
    """Element [i0, i1, ...] of a value lies at owner's memory + offset + i0 * strides[0] + ..., in elements.

    flipped: int8 elements are stored as uint8, 128 more, for instructions that multiply unsigned by signed bytes.
    halo: what lies around an image, written by the kernel that computes the image; the owner's memory includes it.
    """

    owner: fx.Node
    offset: Size
    strides: tuple[Size, ...]
    flipped: bool = False
    halo: Halo | None = None
