"""What can be watched while a pipeline runs: dumps, timing, drift. Each is called as `watch(step, before, after)`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import fx

from graphc import text
from graphc.errors import VerificationError
from graphc.graph import Graph
from graphc.pipeline import Step

# The signal-to-noise ratio, in decibel, that a pass's promise keeps. "exact" leaves room for the rounding of f32,
# "close" for int8 steps that fall the other way and add up over many layers; a "lossy" pass promises nothing here.
LEAST_SQNR = {"exact": 80.0, "close": 20.0, "lossy": -math.inf}


@dataclass
class DumpIR:
    """Writes one file a pass, numbered, into `folder`; tensors lie once in `folder/weights` by their digest."""

    folder: Path
    written: list[Path] = field(default_factory=list)

    def __call__(self, step: Step, before: Graph, after: Graph) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.written:
            self._write(before, "00_input.txt")
        self._write(after, f"{step}.txt")

    def _write(self, graph: Graph, name: str) -> None:
        path = self.folder / name
        text.save(graph, path)
        self.written.append(path)


@dataclass
class Timing:
    """Seconds of each pass, and how many nodes it left."""

    rows: list[tuple[str, float, int, int]] = field(default_factory=list)

    def __call__(self, step: Step, before: Graph, after: Graph) -> None:
        self.rows.append((str(step.applied), step.seconds, len(before.fx.nodes), len(after.fx.nodes)))


@dataclass(frozen=True)
class DriftRow:
    """What a pass changed: the least signal-to-noise ratio of an output, in decibel, and the largest absolute error."""

    name: str
    sqnr: float
    max_error: float


@dataclass
class Drift:
    """Runs a probe through the graph before and after each pass; a pass that drifts further than it promises is an
    error that names it."""

    probe: Sequence[torch.Tensor]
    rows: list[DriftRow] = field(default_factory=list)
    _last: tuple[Graph, list[torch.Tensor]] | None = None

    def __call__(self, step: Step, before: Graph, after: Graph) -> None:
        if after is before:
            self.rows.append(DriftRow(str(step.applied), math.inf, 0.0))
            return
        known = self._last
        old = known[1] if known is not None and known[0] is before else before.run_flat(list(self.probe))
        new = after.run_flat(list(self.probe))
        self._last = (after, new)
        row = drift(str(step.applied), old, new)
        self.rows.append(row)
        least = LEAST_SQNR[step.applied.fidelity]
        if not row.sqnr >= least:
            raise VerificationError(
                f"it promises to be {step.applied.fidelity} (at least {least:.0f} dB), but left the outputs at "
                f"{row.sqnr:.1f} dB (largest error {row.max_error:.3g})"
            )


def drift(name: str, old: Sequence[torch.Tensor], new: Sequence[torch.Tensor]) -> DriftRow:
    """Compare two lists of outputs; the worst of them counts. Equal NaN and infinities count as equal."""
    rows = [_drift(name, a.to(torch.float64), b.to(torch.float64)) for a, b in zip(old, new, strict=True)]
    return DriftRow(
        name, min((row.sqnr for row in rows), default=math.inf), max((r.max_error for r in rows), default=0.0)
    )


def _drift(name: str, old: torch.Tensor, new: torch.Tensor) -> DriftRow:
    if old.shape != new.shape:
        return DriftRow(name, -math.inf, math.inf)
    same = (old == new) | (old.isnan() & new.isnan())
    error = torch.where(same, 0.0, (old - new).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    signal = float((old.nan_to_num(0.0, 0.0, 0.0) ** 2).sum())
    noise = float((error**2).sum())
    if noise == 0:
        return DriftRow(name, math.inf, 0.0)
    ratio = signal / noise
    return DriftRow(name, 10 * math.log10(ratio) if ratio else -math.inf, float(error.max()))


@dataclass
class LayerError:
    """Signal-to-noise ratio in decibel, at each node that a lossy pass keeps, of its value after the pass to before.

    Runs one calibration batch, and only around lossy passes; does nothing without one.
    """

    probe: Sequence[torch.Tensor] | None
    rows: dict[str, float] = field(default_factory=dict)

    def __call__(self, step: Step, before: Graph, after: Graph) -> None:
        if self.probe is None or after is before or step.applied.fidelity != "lossy":
            return
        old: dict[str, torch.Tensor] = {}

        def remember(node: fx.Node, value: object) -> None:
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                old[node.name] = value

        def compare(node: fx.Node, value: object) -> None:
            if node.name in old and isinstance(value, torch.Tensor) and value.shape == old[node.name].shape:
                self.rows[node.name] = drift(node.name, [old.pop(node.name)], [value]).sqnr

        with torch.no_grad():
            before.run_flat(list(self.probe), remember)
            after.run_flat(list(self.probe), compare)
