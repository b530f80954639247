"""Every error that a user can cause.

GraphcError
├── CaptureError               the model cannot be traced (control flow on data, mutation, unsupported input)
├── UnsupportedOperatorError   operators that a frontend, pass or backend does not know: all of them at once
├── ParseError                 IR text that is not a graph (line, column, the line itself)
├── VerificationError          a graph that breaks an invariant (names the guilty pass where there is one)
├── PassError                  unknown pass, wrong option, or a pass that failed
├── FormatError                a weight format that cannot be read, or that cannot hold a weight
├── CalibrationError           empty, NaN or ill-shaped calibration data
├── BudgetError                no configuration meets the budget, or the budget cannot be read
├── TrainingError              a network that cannot be trained, or a checkpoint of another run
├── InputError                 wrong number, shape or dtype of inputs at run time
├── ArtifactError              truncated, tampered, or written by another version
├── TuningError                a tuning database that cannot be read, or a device that cannot be reached
└── TargetError                unknown target, wrong CPU, missing emulator or linker
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class GraphcError(Exception):
    """Root of every error that a user can cause; its text says what is wrong and what would be legal."""


class CaptureError(GraphcError):
    """The model cannot be captured as a graph."""


@dataclass(frozen=True)
class Unsupported:
    """One operator that cannot be taken: where it stands and what would help."""

    node: str
    operator: str
    path: str = ""
    hint: str = ""

    def __str__(self) -> str:
        where = f" in layer '{self.path}'" if self.path else ""
        return f"{self.operator} (node %{self.node}{where})" + (f": {self.hint}" if self.hint else "")


class UnsupportedOperatorError(GraphcError):
    """Operators that cannot be taken, all at once.

    `found` lists them; `who` is the frontend, pass or backend that speaks.
    """

    def __init__(self, who: str, found: Sequence[Unsupported]) -> None:
        self.found = tuple(found)
        lines = "\n".join(f"  {item}" for item in self.found)
        super().__init__(f"{who} does not support {len(self.found)} operator(s) of this model:\n{lines}")


class ParseError(GraphcError):
    """IR text that is not a graph."""

    def __init__(self, message: str, line: str = "", number: int = 0, column: int = 0) -> None:
        self.column = column
        caret = f"\n{number:5} | {line}\n      | {' ' * column}^" if number else ""
        super().__init__(message + caret)


class VerificationError(GraphcError):
    """A graph that breaks an invariant of the IR."""


class PassError(GraphcError):
    """An unknown pass, an option it does not have, or a pass that failed."""


class FormatError(GraphcError):
    """A weight format that cannot be read, or a weight that it cannot hold."""


class CalibrationError(GraphcError):
    """Calibration data that cannot be used."""


class BudgetError(GraphcError):
    """A budget that cannot be read, or that nothing meets."""


class TrainingError(GraphcError):
    """A network that cannot be trained, training that went astray, or a checkpoint that cannot be used."""


class InputError(GraphcError):
    """Inputs that do not fit the compiled model."""


class ArtifactError(GraphcError):
    """An artifact that is truncated, tampered with, or of another version."""


class TuningError(GraphcError):
    """A tuning database cannot be read, or the device to measure on cannot be reached."""


class TargetError(GraphcError):
    """A target that is unknown, or that this machine cannot build for or run."""
