"""Whether the promise of `Budget(metric_drop=...)` holds: `python -m graphc.tools.budgets [NAME ...]`.

stories260k  the decoder, by the negative log likelihood of a token of TinyStories, in nats
llama        the larger one, of characters
minilm       MiniLM, by Spearman's correlation on pairs of sentences (SICK test), 32 tokens each

Each budget is one call of `graphc.compile`: it searches on a third of the data, has to keep the drop on the held-back
third too, and is judged on the last third, which nothing but this table sees. "broken" says on which of the first two
the drop is more than was promised: it must be empty. Bytes are of the artifact's weights, and "with code" of what the
search makes least, the weights and the code. The full run:

    python -m graphc.tools.budgets --output tools/results/budgets.json
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import graphc
from graphc.acceptance import Metric, caller
from graphc.analysis.candidates import FORMATS
from graphc.errors import BudgetError
from graphc.tools import statement
from graphc.tools.statement import Known
from graphc.tools.zoo import benchmarks, data, tokens
from graphc.tools.zoo.catalog import MODELS

PARTS = ("searched", "held back", "unseen")
# MiniLM has forty times the weights of the decoders: fewer formats compete.
FEW = tuple(text for text in FORMATS if text in (
    "linear", "linear(bits=4,group=16,range=mse,rounding=gptq)", "linear(bits=3,group=16,range=mse,rounding=gptq)",
    "vector(d=2,codewords=256)", "vector(d=3,codewords=128)", "vector(d=4,codewords=256)",
))  # fmt: skip


def likelihood(windows: Tensor, targets: Tensor) -> Metric:
    """The mean log likelihood of the targets, in nats; the model takes one window at a time."""

    def metric(run: Callable[..., Any]) -> float:
        total = 0.0
        for window, expected in zip(windows, targets, strict=True):
            logits = torch.as_tensor(run(window[None]))[0].double()
            total -= float(F.cross_entropy(logits, expected, reduction="sum"))
        return total / int((targets >= 0).sum())

    return metric


def similarity(pairs: Sequence[tuple[str, str]], gold: Tensor, length: int, batch: int) -> Metric:
    """Spearman's correlation of the gold scores with the cosines of the embeddings."""
    sentences = sorted({sentence for pair in pairs for sentence in pair})
    ids, mask = tokens.wordpiece(sentences, length)
    missing = -len(sentences) % batch
    ids, mask = (torch.cat([each, each[:1].expand(missing, -1)]) for each in (ids, mask))

    def metric(run: Callable[..., Any]) -> float:
        found = [torch.as_tensor(run(x)) for x in zip(ids.split(batch), mask.split(batch), strict=True)]
        embedding = dict(zip(sentences, torch.cat(found).double(), strict=False))
        return benchmarks.spearman(torch.stack([embedding[a] @ embedding[b] for a, b in pairs]), gold)

    return metric


def decoder(name: str, encode: Callable[[str], list[int]], context: int, budgets: Sequence[float]) -> statement.Measure:
    def measure(options: argparse.Namespace, known: Known) -> None:
        count = options.limit or 3 * 36
        windows, targets = benchmarks.story_windows(encode, context, count)
        metrics = [likelihood(windows[part::3], targets[part::3]) for part in range(3)]
        calibration = list(MODELS[name].calibration(8, 1))
        _sweep(known, name, budgets, dict(zip(PARTS, metrics, strict=True)), calibration, FORMATS)

    return measure


def minilm(options: argparse.Namespace, known: Known) -> None:
    length, batch, count = 32, 16, options.limit or 900
    pairs, gold = data.sentence_pairs("sick_test", count)
    metrics = [similarity(pairs[part::3], gold[part::3], length, batch) for part in range(3)]
    sentences = [sentence for story in data.stories() for sentence in story.replace("\n", " ").split(". ")]
    ids, mask = tokens.wordpiece(sentences[: 16 * batch], length)
    calibration = list(zip(ids.split(batch), mask.split(batch), strict=True))
    _sweep(known, "minilm", (0.03, 0.01), dict(zip(PARTS, metrics, strict=True)), calibration, FEW)


def _sweep(
    known: Known,
    name: str,
    budgets: Sequence[float],
    metrics: Mapping[str, Metric],
    calibration: Sequence[Any],
    formats: Sequence[str],
) -> None:
    model = MODELS[name].build()
    floats = {part: known.once(f"fp32, {part}", metric, caller(model)) for part, metric in metrics.items()}
    plain = known.once("fp32 bytes", lambda: graphc.compile(model, "host", calibration[0]).size.weights)
    for budget in budgets:
        key = f"metric_drop={budget}"
        if key in known:
            continue
        start = time.perf_counter()
        try:
            artifact = graphc.compile(
                model, "host", calibration[0], calibration, graphc.Budget(metric_drop=budget), metrics["searched"],
                held_back=metrics["held back"], formats=formats,
            )  # fmt: skip
        except BudgetError as error:
            known[key] = {"measured": str(error).splitlines()[1].strip()}
            continue
        drops = {part: floats[part] - metric(caller(artifact.run)) for part, metric in metrics.items()}
        points = artifact.report().front
        chosen = next(point for point in points if point["chosen"])
        known[key] = {
            **{f"drop, {part}": drop for part, drop in drops.items()},
            "broken": ", ".join(part for part in PARTS[:2] if drops[part] > budget),
            "bytes": artifact.size.weights,
            "times smaller": plain / artifact.size.weights,
            "bytes with code": artifact.size,
            "artifacts": len(points),
            "seconds": time.perf_counter() - start,
            "formats": chosen["formats"],
        }


FIGURES = {
    "stories260k": decoder("stories260k", tokens.tok512, 512, (0.02, 0.05, 0.1, 0.2, 0.5)),
    "llama": decoder("llama_char105", tokens.char105, 256, (0.02, 0.1)),
    "minilm": minilm,
}


def main(arguments: Sequence[str] | None = None) -> int:
    return statement.main("graphc.tools.budgets", __doc__, FIGURES, arguments)


if __name__ == "__main__":
    sys.exit(main())
