"""The bench's results: a JSON document, and what is read off it (ratios, shares of the peaks) as a table."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from graphc import container
from graphc.errors import GraphcError
from graphc.target import machine_features

# Bits of a weight as stored, scales and codebooks included where they are fixed by the format.
BITS = {"fp32": 32.0, "bf16": 16.0, "int8": 8.0, "int4": 4.5, "int2": 2.625, "vq2": 2.0, "vq1": 1.0}

OURS = "graphc"


def machine() -> dict[str, Any]:
    """The CPU in words, and how many of it there are; nothing that names this very machine."""
    words = {"model name": platform.machine()}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        words |= {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    except OSError:
        lines = []
    return {
        "cpu": words["model name"],
        "family, model, stepping": [words.get(key) for key in ("cpu family", "model", "stepping")],
        "features": list(machine_features()),
        "cpus": sum(line.startswith("processor") for line in lines),
        "virtual": "hypervisor" in words.get("flags", "").split(),
        "caches": _caches(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
    }


def _caches() -> dict[str, str]:
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    found = {}
    for index in sorted(folder.glob("index*")) if folder.is_dir() else []:
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        found[f"L{level} {kind.lower()}"] = size
    return found


def read(path: Path) -> dict[str, Any]:
    """An earlier run's results. Raises GraphcError where the file is something else."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        assert isinstance(found["groups"], list)
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise GraphcError(f"'{path}' holds no results of the bench: name another file for --output") from error
    return found


def write(path: Path, results: Mapping[str, Any]) -> None:
    container.write(path, (json.dumps(results, indent=1) + "\n").encode())


def rank(group: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The group's entries, fastest first and those without a time at last, with what is read off them.

    "of best" and "of same": the best peer's time, in any and in the same precision, over this entry's: above 1 it is
    faster than they are. "peak": share of the machine's own multiply-accumulate peak in this precision; "read": bytes
    of weights a second over what the machine could read beside that round, the median of the rounds. Peers are all
    engines but graphc whose outputs are right.
    """
    rows = [dict(entry) for entry in group["entries"]]
    for row in rows:
        if row["status"] != "ok" or "seconds" not in row:
            continue
        seconds, precision = row["seconds"], row["precision"]
        peers = [peer for peer in rows if peer["status"] == "ok" and peer["engine"] != OURS and "seconds" in peer]
        same = [peer for peer in peers if peer["precision"] == precision]
        for key, among in (("of best", peers), ("of same", same)):
            if among:
                row[key] = min(peer["seconds"] for peer in among) / seconds
        row["operations"] = group["operations"] / seconds
        if precision in group["peaks"]:
            row["peak"] = row["operations"] / group["peaks"][precision]
        if precision in BITS:
            size = group["weights"] * BITS[precision] / 8
            row["bytes"] = size / seconds
            if "readable" in row:  # what was measured before it was kept has none
                shares = zip(row["rounds"], row["readable"], strict=True)
                row["read"] = statistics.median(size / median / rate for median, rate in shares)
    return sorted(rows, key=lambda row: row.get("seconds", float("inf")))


def tables(groups: Iterable[Mapping[str, Any]]) -> Iterable[Table]:
    """One table a group."""
    for group in groups:
        threads = "1 thread" if group["threads"] == 1 else f"{group['threads']} threads"
        table = Table(title=f"{group['workload']}, batch {group['batch']}, {threads}", title_justify="left")
        table.add_column("engine")
        table.add_column("precision")
        for column in ("ms", "10-90 %", "of best peer", "of same", "GOP/s", "peak", "GB/s", "read", "cosine", "score"):
            table.add_column(column, justify="right")
        for row in rank(group):
            style = "bold" if row["engine"] == OURS else None
            if "seconds" not in row or row["status"] != "ok":
                time = f"{row['seconds'] * 1e3:.3f}" if "seconds" in row else ""
                table.add_row(row["engine"], row["precision"], time, f"{row['status']}: {row['reason']}", style="dim")
                continue
            table.add_row(*_cells(row), style=style)
        yield table


def _cells(row: Mapping[str, Any]) -> list[str]:
    def ratio(key: str) -> str:
        return f"{row[key]:.2f}x" if key in row else ""

    def share(key: str) -> str:
        return f"{row[key]:.0%}" if key in row else ""

    low, high = row["spread"]
    cosine, score = row["cosine"], row.get("score")
    return [
        row["engine"], row["precision"], f"{row['seconds'] * 1e3:.3f}", f"{low * 1e3:.3g}-{high * 1e3:.3g}",
        ratio("of best"), ratio("of same"), f"{row['operations'] / 1e9:.0f}", share("peak"),
        f"{row['bytes'] / 1e9:.1f}" if "bytes" in row else "", share("read"), f"{cosine:.4f}",
        "" if score is None else f"{score:.4g}",
    ]  # fmt: skip
