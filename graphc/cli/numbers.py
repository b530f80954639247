"""Numbers on the command line."""

from __future__ import annotations


def positive(text: str) -> int:
    """An integer from 1 up. Raises ValueError, which argparse reports as wrong usage."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value
