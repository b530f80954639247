"""The memory plan: where every value lies, decided once, at the largest sizes.

Each tensor takes a range of bytes for as long as steps still read it. Ranges are placed by decreasing size at the
tightest gap that is free for the tensor's whole life (greedy by size; Pisarchyk & Lee, Efficient Memory Management for
Deep Neural Net Inference, 2020, with best fit in place of first fit).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """Bytes that must hold still from step `first` to step `last`, both included."""

    bytes: int
    first: int
    last: int


def aligned(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def place(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """An offset for each, and the bytes of the whole arena."""
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    for number in sorted(range(len(lifetimes)), key=lambda i: (-lifetimes[i].bytes, i)):
        item = lifetimes[number]
        size = aligned(item.bytes)
        busy = sorted(
            (offsets[other], offsets[other] + aligned(lifetimes[other].bytes))
            for other in placed
            if lifetimes[other].first <= item.last and item.first <= lifetimes[other].last
        )
        best: tuple[int, int] | None = None
        end = 0
        for start, stop in busy:
            gap = start - end
            if gap >= size and (best is None or gap < best[0]):
                best = (gap, end)
            end = max(end, stop)
        offsets[number] = best[1] if best is not None else end
        placed.append(number)
    total = max((offset + aligned(item.bytes) for offset, item in zip(offsets, lifetimes, strict=True)), default=0)
    return offsets, total


def pack(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Offsets of tensors laid one after the other, and the bytes of all."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += aligned(size)
    return offsets, end
