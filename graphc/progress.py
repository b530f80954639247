"""Progress of long work on a terminal, through rich; silent where the output is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """Says nothing."""


@contextmanager
def terminal(enabled: bool | None = None) -> Iterator[Progress]:
    """A progress callback `(what, done, total)` that draws one bar for each `what`, on standard error.

    What follows a colon in `what`, such as a metric, may change from call to call: it is shown, and is no other bar.
    enabled: None draws only where standard error is a terminal.
    """
    if enabled is False or (enabled is None and not sys.stderr.isatty()):
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bars, tasks = Bars(*columns, console=Console(stderr=True), transient=True), dict[str, int]()

    def show(what: str, done: int, total: int) -> None:
        bars.start()  # not before there is something to show: who calls may have bars of its own
        bar = what.partition(":")[0]
        if bar not in tasks:
            tasks[bar] = int(bars.add_task(what, total=total))
        bars.update(tasks[bar], completed=done, total=total, description=what)  # type: ignore[arg-type]

    try:
        yield show
    finally:
        bars.stop()
