"""Where a value lies in memory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from graphc.tensor_type import Size


@dataclass(frozen=True)
class Placement:
    """Element [i0, i1, ...] of a value lies at owner's memory + offset + i0 * strides[0] + ..., in elements."""

    owner: fx.Node
    offset: Size
    strides: tuple[Size, ...]
