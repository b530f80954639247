"""What each layer became, in the model's own names: a value that prints as text, JSON or a page."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True)
class Row:
    """One kernel of the compiled model."""

    name: str  # the user's layer
    op: str  # operators, fused ones joined by "+"
    format: str  # of the weights: f32, int8, ...
    bytes: int  # of stored weights
    macs: int
    error: float | None  # signal-to-noise ratio of the layer's output in decibel; None where nothing was lost
    kernel: str
    reason: str  # why this kernel or format and not a better one


@dataclass(frozen=True)
class Report:
    """All rows, the totals, and the facts of the run: target, pipeline, timing of the passes.

    front: where a budget was searched for, the choices that were measured, by increasing size; all have the same keys.
    """

    rows: tuple[Row, ...]
    totals: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    front: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        known = {"rows": [asdict(row) for row in self.rows], "totals": self.totals, "facts": self.facts}
        return known | ({"front": [dict(point) for point in self.front]} if self.front else {})

    @staticmethod
    def from_json(data: dict[str, Any]) -> Report:
        return Report(
            tuple(Row(**row) for row in data["rows"]), data["totals"], data["facts"], tuple(data.get("front", ()))
        )

    def to_text(self, width: int = 140) -> str:
        """A table for a terminal of `width` columns."""
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for column in fields(Row):
            right = column.name in ("bytes", "macs", "error")
            table.add_column(column.name, justify="right" if right else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(_cell(value) for value in asdict(row).values()))
        console = Console(file=io.StringIO(), width=width, no_color=True, highlight=False)
        console.print(table)
        if self.front:
            front = Table(box=None, pad_edge=False)
            for name in self.front[0]:
                front.add_column(name, overflow="fold")
            for point in self.front:
                front.add_row(*map(_cell, point.values()))
            console.print("\nfront")
            console.print(front)
        for title, entries in (("totals", self.totals), ("facts", self.facts)):
            console.print(f"\n{title}")
            for key, value in entries.items():
                console.print(f"  {key}: {_cell(value)}", markup=False)
        return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]

    def to_html(self) -> str:
        """One page with no outside resources."""
        head = "".join(f"<th>{column.name}</th>" for column in fields(Row))
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(_cell(value))}</td>" for value in asdict(row).values()) + "</tr>"
            for row in self.rows
        )
        facts = "".join(
            f"<dt>{html.escape(key)}</dt><dd>{html.escape(_cell(value))}</dd>"
            for key, value in {**self.totals, **self.facts}.items()
        )
        front = ""
        if self.front:
            lines = [self.front[0].keys(), *(map(_cell, point.values()) for point in self.front)]
            cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in lines)
            front = "<h2>Front</h2><table>" + "".join(f"<tr>{line}</tr>" for line in cells) + "</table>"
        return _PAGE.format(head=head, body=body, facts=facts, front=front)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return value if isinstance(value, str) else json.dumps(value)


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>graphc report</title>
<style>
body {{ font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100% }}
th, td {{ border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left; vertical-align: top }}
td:nth-child(n+4):nth-child(-n+6) {{ text-align: right; font-variant-numeric: tabular-nums }}
dt {{ font-weight: 600 }} dd {{ margin: 0 0 .5rem }}
</style>
<h1>graphc report</h1><dl>{facts}</dl>
<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{front}</html>
"""
