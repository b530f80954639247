"""Check that this machine can compile and run models, and say what to install.

Example:
  graphc doctor
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version

import graphc
from graphc.cli.output import print_columns, print_json
from graphc.errors import GraphcError, TargetError
from graphc.runtime import emulator
from graphc.target import Target, machine_arch, machine_features


@dataclass(frozen=True)
class Check:
    """One line of the examination. `status`: "ok", "missing" (something that not everyone needs) or "failed"."""

    name: str
    status: str
    detail: str


def configure(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(arguments: argparse.Namespace) -> int:
    checks = examine()
    if arguments.json:
        print_json([asdict(check) for check in checks])
    else:
        print_columns((check.status, check.name, check.detail) for check in checks)
    return int(any(check.status == "failed" for check in checks))


def examine() -> list[Check]:
    """All checks, in the order in which to mend what they find; models are compiled only where the rest is in order."""
    other = "x86-64" if machine_arch() == "arm64" else "arm64"
    emulated = _emulator(other)
    python = f"{graphc.__version__} on Python {sys.version.split()[0]}"
    checks = [Check("graphc", "ok", python), *packages(requires("graphc") or ()), _machine(), emulated]
    if all(check.status != "failed" for check in checks):
        checks += [_trial(target) for target in (["host", other] if emulated.status == "ok" else ["host"])]
    return checks


def packages(requirements: Sequence[str]) -> list[Check]:
    """Each requirement (as in pyproject.toml) against what is installed; those of extras are not looked at."""
    from packaging.requirements import Requirement

    checks = []
    for text in requirements:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        remedy = f"pip install '{wanted.name}{wanted.specifier}'"
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            checks.append(Check(wanted.name, "failed", f"not installed: {remedy}"))
            continue
        if wanted.specifier.contains(found, prereleases=True):
            checks.append(Check(wanted.name, "ok", found))
        else:
            detail = f"{found} is installed, graphc was tested with {wanted.specifier}: {remedy}"
            checks.append(Check(wanted.name, "failed", detail))
    return checks


def _machine() -> Check:
    try:
        Target.parse("host")
    except TargetError as error:
        return Check("cpu", "failed", str(error))
    return Check("cpu", "ok", f"{machine_arch()}: {' '.join(machine_features())}")


def _emulator(arch: str) -> Check:
    try:
        return Check(f"emulator for {arch}", "ok", emulator.find(arch))
    except TargetError as error:
        return Check(f"emulator for {arch}", "missing", str(error))


def _trial(target: str) -> Check:
    """Compile a small network, run it, and compare it with torch."""
    import torch

    name = f"compile and run for {target}"
    torch.manual_seed(0)
    layers = (torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10))
    model, x = torch.nn.Sequential(*layers).eval(), torch.randn(1, 1, 8, 8)
    try:
        found = graphc.compile(model, target, (x,), progress=False).run(x)
    except GraphcError as error:
        return Check(name, "failed", str(error))
    with torch.no_grad():
        difference = float((torch.from_numpy(found) - model(x)).abs().max())
    return Check(name, "ok" if difference < 1e-4 else "failed", f"largest difference from torch: {difference:.1g}")
