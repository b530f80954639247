"""List the chips to compile for, and what this machine can run.

Example:
  graphc targets
"""

from __future__ import annotations

import argparse
from pathlib import Path

from graphc.cli.output import print_columns, print_json
from graphc.errors import TargetError
from graphc.runtime import emulator
from graphc.target import Target, known_targets, machine_arch, machine_features


def configure(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(arguments: argparse.Namespace) -> int:
    rows = [(name, runs_here(name), description) for name, description in known_targets()]
    if arguments.json:
        print_json([dict(zip(("name", "runs", "description"), row, strict=True)) for row in rows])
    else:
        print_columns([("TARGET", "RUNS HERE", "MEANING"), *rows])
    return 0


def runs_here(name: str) -> str:
    """How this machine runs code for a target, or what is missing."""
    try:
        target = Target.parse(name)
    except TargetError as error:  # host, on a machine that graphc has no code for
        return f"no: {error}"
    if target.arch == machine_arch():
        missing = [feature for feature in target.features if feature not in machine_features()]
        return f"no: the CPU lacks {' '.join(missing)}" if missing else "natively"
    try:
        return f"under {Path(emulator.find(target.arch)).name}"
    except TargetError:
        return "no: needs qemu-user"
