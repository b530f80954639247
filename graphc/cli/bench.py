"""Measure graphc beside other engines, side by side on this machine.

Every engine runs in a process of its own, which is stopped while another is measured; they take turns. Engines that are
not installed are named as absent: `make bench` installs all of them. What is done is kept in the output file as it
comes, and another run goes on from there.

Examples:
  graphc bench --models resnet18,mobilenet_v2 --threads 1
  graphc bench --output results.json --chart results.png
  graphc bench --prepare
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from graphc.cli.numbers import positive
from graphc.cli.output import print_json
from graphc.errors import GraphcError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", metavar="A,B", type=_names, help="which models (default: all)")
    parser.add_argument(
        "--engines", metavar="A,B", type=_names, help="which engines beside torch itself (default: all)"
    )
    parser.add_argument("--threads", metavar="N,M", type=_numbers, default=[1, 2], help="default: 1,2")
    parser.add_argument("--batch", metavar="N,M", type=_numbers, default=[1], help="of the image models (default: 1)")
    parser.add_argument("--rounds", metavar="N", type=positive, default=5, help="turns of each engine (default: 5)")
    parser.add_argument(
        "--output", metavar="FILE.json", type=Path, default=Path("bench.json"), help="where results are kept"
    )
    parser.add_argument("--chart", metavar="FILE.png", type=Path, help="draw the results as bars")
    parser.add_argument("--again", action="store_true", help="measure what the output file already has once more")
    parser.add_argument("--prepare", action="store_true", help="only convert and compile the models, and keep that")
    parser.add_argument("--show", action="store_true", help="measure nothing: print what the output file has")
    parser.add_argument(
        "--cache", metavar="FOLDER", type=Path, default=_cache(), help="keeps prepared models (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from graphc.tools.bench import chart, results, suite
    from graphc.tools.bench.engines import ENGINES
    from graphc.tools.bench.workloads import WORKLOADS

    models = _chosen("model", arguments.models, WORKLOADS)
    engines = [ENGINES[name] for name in _chosen("engine", arguments.engines, ENGINES)]
    groups = suite.groups(models, arguments.batch, arguments.threads)
    console = Console(stderr=True)
    if arguments.prepare:
        suite.prepare(groups, engines, arguments.cache, console)
        return 0
    if not arguments.show:
        suite.measure(groups, engines, arguments.cache, arguments.output, arguments.rounds, arguments.again, console)
    found = results.read(arguments.output)
    wanted = [
        group for group in found["groups"] if suite.key(group) in {suite.key(each) for each in map(suite.names, groups)}
    ]
    if arguments.chart is not None:
        chart.draw(wanted, arguments.chart)
    if arguments.json:
        print_json({**found, "groups": [{**group, "entries": results.rank(group)} for group in wanted]})
    else:
        for table in results.tables(wanted):
            Console(file=sys.stdout, width=None if sys.stdout.isatty() else 150).print(table)
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _numbers(text: str) -> list[int]:
    return [positive(number) for number in text.split(",")]


def _chosen(what: str, names: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """All that are known where none is named. Names are compared without case."""
    folded = {name.lower(): name for name in known}
    unknown = [name for name in names or () if name.lower() not in folded]
    if unknown:
        raise GraphcError(f"unknown {what} {', '.join(unknown)}; there are: {', '.join(known)}")
    return [folded[name.lower()] for name in names] if names else list(known)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphc" / "bench"
