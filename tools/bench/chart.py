"""The results as bars: one panel a group, a bar an engine and precision, shorter is faster."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphc.errors import GraphcError
from graphc.tools.bench.results import OURS, rank


def draw(groups: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG. Raises GraphcError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise GraphcError("the chart is drawn with matplotlib: pip install matplotlib, or leave --chart out") from error
    columns = min(3, len(groups))
    rows = math.ceil(len(groups) / columns)
    figure = Figure(figsize=(5.5 * columns, 3.6 * rows), layout="constrained")
    for index, group in enumerate(groups):
        axes = figure.add_subplot(rows, columns, index + 1)
        timed = [row for row in rank(group) if row["status"] == "ok" and "seconds" in row]
        names = [f"{row['engine']} {row['precision']}" for row in timed]
        times = [row["seconds"] * 1e3 for row in timed]
        colors = ["tab:orange" if row["engine"] == OURS else "tab:gray" for row in timed]
        end = 8 * min(times, default=1.0)  # the slowest are cut off, and say so
        bars = axes.barh(names, [min(time, end) for time in times], color=colors)
        axes.bar_label(bars, [f" {time:.3g}" + (" (cut)" if time > end else "") for time in times], fontsize=7)
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
        if times:
            axes.set_xlim(0, min(max(times), end) * 1.18)
        threads = "1 thread" if group["threads"] == 1 else f"{group['threads']} threads"
        axes.set_title(f"{group['workload']}, batch {group['batch']}, {threads}: ms", fontsize=9)
    figure.savefig(path, dpi=90)
