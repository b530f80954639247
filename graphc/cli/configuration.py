"""The configuration of a compilation: one set of names for options, configuration files and the record of a run."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Configuration:
    """Everything that decides what `graphc compile` does; `budget_size` is `--budget-size` and so on."""

    model: str
    output: str
    shape: tuple[str, ...] = ()
    target: str = "host"
    pipeline: str = ""
    calibration: str | None = None
    budget_size: str | None = None
    dump_ir: str | None = None
    drift: bool = False
    seed: int = 0
    entropy_coding: bool = False
    threads: int | None = None


NAMES = tuple(field.name for field in fields(Configuration))


def resolve(given: Mapping[str, Any], path: str | None, parser: argparse.ArgumentParser) -> Configuration:
    """What the command line gives, over what the file at `path` gives, over the defaults; the pipeline written out.

    The file's values are read by `parser`, as options, and so is every error in them reported: wrong usage. Raises
    PassError for an unknown pass.
    """
    from graphc.pipeline import pipeline

    configured = vars(parser.parse_args(_options(path, parser))) if path is not None else {}
    merged = {name: value for source in (configured, given) for name, value in source.items() if name in NAMES}
    for name in ("model", "output"):
        if name not in merged:
            parser.error(f"no {name} is given, neither on the command line nor in a configuration file")
    preset = "float" if merged.get("calibration") is None else "int8"
    passes = str(pipeline(merged.get("pipeline") or preset))
    return Configuration(**{**merged, "shape": tuple(merged.get("shape", ())), "pipeline": passes})


def _options(path: str, parser: argparse.ArgumentParser) -> list[str]:
    """A configuration file as a command line."""
    try:
        content = Path(path).read_text()
        values = tomllib.loads(content) if path.endswith(".toml") else json.loads(content)
    except ValueError as error:
        parser.error(f"cannot read the configuration '{path}': {error}")
    if not isinstance(values, dict):
        parser.error(f"the configuration '{path}' must be a table of options")
    if unknown := sorted(set(values) - set(NAMES)):
        parser.error(f"the configuration '{path}' has the unknown keys {', '.join(unknown)}; known: {', '.join(NAMES)}")
    options: list[str] = []
    for name, value in values.items():
        if isinstance(value, dict) or (isinstance(value, list) and name != "shape"):
            parser.error(f"the configuration '{path}' has a {type(value).__name__} for '{name}'; expected one value")
        flag = f"--{name.replace('_', '-')}"
        if name == "model":
            options += [] if value is None else [str(value)]
        elif value is True:
            options.append(flag)
        elif value is not None and value is not False:
            options += [f"{flag}={item}" for item in (value if isinstance(value, list) else [value])]
    return options
