"""The `graphc` command: one file a verb.

Exit status: 0 done, 1 an error that its message explains, 2 wrong usage, 3 a defect of graphc itself.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

import graphc
from graphc.errors import GraphcError

VERBS = ("compile", "show", "run", "report", "bench", "tune", "latency", "passes", "targets", "doctor")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit status. argparse itself exits with 2 for wrong usage."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("graphc").setLevel(logging.DEBUG if arguments.verbose else logging.INFO)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("graphc: interrupted", file=sys.stderr)
        return 130
    except (GraphcError, OSError) as error:
        if arguments.verbose:
            traceback.print_exc()
        print(f"graphc: error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if arguments.verbose:
            traceback.print_exc()
        print(
            f"graphc: internal error: {type(error).__name__}: {error}\nThis is a defect of graphc. Please report it "
            "with the output of the same command with -v, and of `graphc doctor --json`.",
            file=sys.stderr,
        )
        return 3
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graphc", description=str(graphc.__doc__).partition("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"graphc {graphc.__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for name in VERBS:
        verb = import_module(f"graphc.cli.{name}")
        verb_parser = verbs.add_parser(
            name,
            help=str(verb.__doc__).partition("\n")[0],
            description=verb.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        verb.configure(verb_parser)
        verb_parser.add_argument("--json", action="store_true", default=False, help="print JSON")
        verb_parser.add_argument(
            "-v", "--verbose", action="store_true", default=False, help="say more, and show tracebacks of errors"
        )
        verb_parser.set_defaults(run=verb.run)
    return parser
