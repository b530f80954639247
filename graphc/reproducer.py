"""Crash reproducers: the failing pass, the graph it was given, and one command that runs it again."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from graphc import text
from graphc.errors import PassError
from graphc.graph import Graph
from graphc.pipeline import PassContext, PassFailure, Pipeline
from graphc.target import Target


def write(failure: PassFailure, ctx: PassContext, folder: Path | None = None) -> Path:
    """Write `before.txt` and, where lossy passes ran before, `original.txt`, with their weights, the first calibration
    batch and `reproduce.json`; returns the folder."""
    from safetensors.torch import save_file

    folder = folder or Path(tempfile.mkdtemp(prefix="graphc-crash-"))
    folder.mkdir(parents=True, exist_ok=True)
    text.save(failure.before, folder / "before.txt")
    if failure.original is not None:
        text.save(failure.original, folder / "original.txt")
    if ctx.calibration:
        save_file(
            {str(i): leaf.contiguous() for i, leaf in enumerate(ctx.calibration[0])}, folder / "calibration.safetensors"
        )
    facts = {"pass": str(failure.applied), "target": ctx.target.to_json(), "seed": ctx.seed, "error": str(failure)}
    (folder / "reproduce.json").write_text(json.dumps(facts, indent=2))
    return folder


def run(folder: str | Path) -> Graph:
    """Run the pass of a reproducer again. Raises what it raised, or returns the graph where it is mended."""
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        facts = json.loads((folder / "reproduce.json").read_text())
    except (OSError, ValueError) as error:
        raise PassError(f"'{folder}' holds no crash reproducer: {error}") from None
    batches = []
    if (folder / "calibration.safetensors").exists():
        leaves = load_file(folder / "calibration.safetensors")
        batches = [[leaves[str(index)] for index in range(len(leaves))]]
    original = text.read(folder / "original.txt") if (folder / "original.txt").exists() else None
    ctx = PassContext(Target.from_json(facts["target"]), batches, seed=facts["seed"], original=original)
    return Pipeline(facts["pass"]).run(text.read(folder / "before.txt"), ctx)
