"""What programs that state figures have in common: names to choose from, tables, and a JSON file that goes on.

>>> FIGURES = {"resnet20": resnet20}  # name -> function(options, known) -> None; options.progress draws bars
>>> sys.exit(main("graphc.tools.my_program", __doc__, FIGURES))
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from graphc import container
from graphc.memory import kept_memory
from graphc.progress import terminal

_WIDEST, _WIDE = 80, 200  # characters of a cell; of a table that no terminal shows
_COLUMNS = 12  # side by side


class Known(MutableMapping[str, Any]):
    """Figures of one name in a JSON file, written as each is found: a run that was stopped, or that another process
    shares, finds them there. Without a file they are kept here."""

    def __init__(self, path: Path | None, name: str) -> None:
        self._path, self._name, self._here = path, name, dict[str, dict[str, Any]]()

    def _read(self) -> dict[str, dict[str, Any]]:
        if self._path is not None and self._path.exists():
            self._here = json.loads(self._path.read_text())
        self._here.setdefault(self._name, {})
        return self._here

    def _write(self, figures: dict[str, dict[str, Any]]) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            container.write(self._path, (json.dumps(figures, indent=1) + "\n").encode())

    def __getitem__(self, key: str) -> Any:
        return self._read()[self._name][key]

    def __setitem__(self, key: str, value: Any) -> None:
        figures = self._read()
        figures[self._name][key] = value
        self._write(figures)

    def __delitem__(self, key: str) -> None:
        figures = self._read()
        del figures[self._name][key]
        self._write(figures)

    def __iter__(self) -> Iterator[str]:
        return iter(self._read()[self._name])

    def __len__(self) -> int:
        return len(self._read()[self._name])

    def once(self, key: str, measure: Callable[..., Any], *arguments: Any) -> Any:
        """The figure `key`: measure(*arguments), where it is not known."""
        if key not in self:
            self[key] = measure(*arguments)
        return self[key]


Measure = Callable[[argparse.Namespace, Known], None]


def main(
    program: str,
    about: str,
    figures: Mapping[str, Measure],
    arguments: Sequence[str] | None = None,
    add: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    shared: Sequence[str] = (),
) -> int:
    """Run the program: each function fills in its figures, which are printed as a table. add: further options; shared:
    those of them that all figures depend on, as on --limit: where they are not the defaults, the name says so.

    A figure is a number, a text, or a dict of these; lists are for the file only.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=about.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which figures (default: all): {', '.join(figures)}")
    parser.add_argument("--limit", type=int, help="fewer images, models or repetitions, for a quick look")
    parser.add_argument("--output", type=Path, help="a JSON file for the figures; what it holds is not measured again")
    add(parser)
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(figures))
    if unknown:
        parser.error(f"unknown figure {', '.join(unknown)}; known: {', '.join(figures)}")
    options.defaults = vars(parser.parse_args([]))
    for name in options.names or figures:
        title = name + apart(options, "limit", *shared)
        known = Known(options.output, title)
        with terminal() as options.progress, kept_memory():
            figures[name](options, known)
        console = Console()
        (console if console.is_terminal else Console(width=_WIDE)).print(table(title, known))
    return 0


def apart(options: argparse.Namespace, *names: str) -> str:
    """What sets figures of these options apart from those of the defaults, such as ", batch 8": a part of their key."""
    given = {name: getattr(options, name) for name in names}
    return "".join(
        f", {name.replace('_', ' ')} {'+'.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in given.items()
        if value != options.defaults[name]
    )


def table(title: str, figures: Mapping[str, Any]) -> Table:
    """A line a figure; one with several values has a column for each, and a line where these are very many. What is too
    long to read stays in the file, and so do records: what other figures are made of, whose names have a " | "."""
    rows = {key: value if isinstance(value, dict) else {"measured": value} for key, value in figures.items()}
    cells = {
        (key, name): cell
        for key, row in rows.items()
        for name, value in row.items()
        if " | " not in key and not isinstance(value, list) and len(cell := text(value)) <= _WIDEST
    }
    lines, columns = [key for key in rows if " | " not in key], list(dict.fromkeys(name for _, name in cells))
    if len(columns) > max(_COLUMNS, len(lines)):
        cells, lines, columns = {(name, key): cell for (key, name), cell in cells.items()}, columns, lines
    found = Table("figure", *columns, title=title)
    for line in lines:
        found.add_row(line, *(cells.get((line, column), "") for column in columns))
    return found


def text(value: object) -> str:
    """Four digits of a number; nothing for None."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)
