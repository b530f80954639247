"""What the verbs print: aligned columns or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def print_columns(rows: Iterable[Sequence[str]]) -> None:
    """One line a row; every column but the last as wide as its widest cell."""
    table = [tuple(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)][:-1]
    for *cells, last in table:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last]).rstrip())


def tensor(info: dict[str, Any]) -> str:
    """An input or output of an artifact's plan, as the IR writes it: x : f32[1, 3, 32, 32]."""
    return f"{info['name']} : {info['dtype']}[{', '.join(map(str, info['shape']))}]"
