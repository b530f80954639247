"""Print what each layer of a compiled model became.

Examples:
  graphc report model.graphc
  graphc report model.graphc --html report.html
"""

from __future__ import annotations

import argparse

import graphc
from graphc import container
from graphc.cli.output import print_json


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="an artifact that `graphc compile` wrote")
    parser.add_argument("--html", metavar="OUT", help="write one self-contained page instead of printing")


def run(arguments: argparse.Namespace) -> int:
    report = graphc.load(arguments.file).report()
    if arguments.html is not None:
        container.write(arguments.html, report.to_html().encode())
    if arguments.json:
        print_json(report.to_json())
    elif arguments.html is None:
        print(report.to_text(), end="")
    return 0
