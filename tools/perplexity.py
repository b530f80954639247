"""Perplexity of language models with compressed weights: `python -m graphc.tools.perplexity [MODEL ...]`.

    python -m graphc.tools.perplexity --output tools/results/perplexity.json     the full run: an hour on one core
    python -m graphc.tools.perplexity stories260k --sections integers --limit 10             a quick look: minutes

Every fourth of the 118 TinyStories calibrates, the other 88 are judged: each alone, every token after the first
predicted, in windows of the model's context; of the recurrent network's novel every other of 32 runs calibrates. Linear
layers are compressed; the embedding (of a Llama, which is also its last layer) and the normalizations stay f32. Bytes
are those of all stored weights; bits are those of the compressed layers, scales, zero points, masks and codebooks
counted. "NLL/token apart" is the difference from the float model's, or of a row "better < worse" that of the two, with
its standard error over texts.

integers   rounding to nearest, HQQ, AWQ and GPTQ at 4, 3 and 2 bits
longer     AdaRound, and GPTQ that sees what the blocks before have become
vectors    codebooks at about 2 bits against integers of no fewer bytes
sparse     SLaB against magnitude, Wanda and sparse + low rank, half of the bytes of f16
low_rank   a low rank of the weight against one of what the layer makes of its inputs (whitened)
compensation    a rounding error made good by a low rank: none, plain, whitened, ranks by sensitivity
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

import graphc
from graphc.graph import Graph
from graphc.pipeline import CLEAN, PassContext, Pipeline
from graphc.tools import statement
from graphc.tools.statement import Known
from graphc.tools.weight_methods import CHECKS, SECTIONS, Layers
from graphc.tools.zoo import data, lstm, tokens
from graphc.tools.zoo.benchmarks import windows
from graphc.tools.zoo.catalog import MODELS

Row = dict[str, Any]
LLAMAS = {"stories260k": (tokens.tok512, 512), "llama_char105": (tokens.char105, 256)}  # encoding and context
EVERY = 4  # one story in so many calibrates
BATCH = 8


class Text(ABC):
    """A language model, the text that calibrates it and the texts that judge it.

    tokens: predicted in each text, int64 [texts]. calibration: flat inputs. sections: what is measured of it.
    """

    sections = tuple(SECTIONS)
    graph: Graph
    layers: Layers
    calibration: list[list[Tensor]]
    tokens: Tensor

    @abstractmethod
    def losses(self, graph: Graph) -> Tensor:
        """Negative log likelihood of each judged text, f64 [texts], nats."""

    def row(self, graph: Graph) -> Row:
        lost = self.losses(graph)
        return {
            "bytes": sum(tensor.nbytes for tensor in graph.weights.values()),
            "bits a weight": round(self.layers.bits(graph), 4),
            "NLL/token": float(lost.sum() / self.tokens.sum()),
            "perplexity": math.exp(float(lost.sum() / self.tokens.sum())),
            "NLL of each text": [round(value, 3) for value in lost.tolist()],
        }


class Stories(Text):
    """A Llama on the TinyStories: each alone, in windows of the model's context."""

    def __init__(self, name: str, limit: int | None = None) -> None:
        encode, context = LLAMAS[name]
        stories = data.stories()
        calibrating = torch.tensor([token for story in stories[::EVERY] for token in encode(story)])
        whole = calibrating[: len(calibrating) // context * context].reshape(-1, context)
        self.calibration = [[batch] for batch in whole[: len(whole) // BATCH * BATCH].split(BATCH)]
        judged = [story for number, story in enumerate(stories) if number % EVERY][:limit]
        self.windows = [windows(encode, context, [story]) for story in judged]
        self.tokens = torch.tensor([int((targets >= 0).sum()) for _, targets in self.windows])
        example, sizes = (self.calibration[0][0],), ({0: Dim("batch", min=1, max=64)},)
        self.graph = Pipeline(CLEAN).run(graphc.trace(MODELS[name].build(), example, dynamic_shapes=sizes))
        self.layers = Layers.of(self.graph, "layers.*")

    def losses(self, graph: Graph) -> Tensor:
        inputs, targets = (torch.cat([story[place] for story in self.windows]) for place in (0, 1))
        rows = []
        with torch.no_grad():
            for x, expected in zip(inputs.split(BATCH), targets.split(BATCH), strict=True):
                logits = graph.run_flat([x])[0].double().transpose(1, 2)
                rows.append(torch.nn.functional.cross_entropy(logits, expected, reduction="none").sum(1))
        counts = [len(x) for x, _ in self.windows]
        return torch.stack([part.sum() for part in torch.cat(rows).split(counts)])


class Novel(Text):
    """The recurrent network on a novel in 32 runs of 6,250 characters, of which every other calibrates; the state is
    carried along a run, and every `apart`th call of it calibrates. Its layers share their path: no ranks by layer."""

    sections = ("integers", "longer", "vectors", "sparse", "low_rank")

    def __init__(self, name: str, limit: int | None = None, runs: int = 32, steps: int = 32, apart: int = 8) -> None:
        text = data.novel()
        rows = text[: len(text) // runs * runs].view(runs, -1)
        self.steps, self.rows = steps, rows[1::2]
        self.tokens = torch.full((len(self.rows),), self.rows.shape[1] - 1)
        example = (rows[::2, :steps], *self._start(len(self.rows)))
        self.graph = Pipeline(CLEAN).run(graphc.trace(MODELS[name].build(), example))
        self.calibration = [call for call, _ in self._calls(self.graph, rows[::2])][::apart]
        self.layers = Layers.of(self.graph, "*")

    def _start(self, count: int) -> tuple[Tensor, Tensor]:
        state = torch.zeros(lstm.LAYERS, count, lstm.HIDDEN)
        return state, state

    def _calls(self, graph: Graph, rows: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
        """The inputs of each call, and the logits."""
        state = self._start(len(rows))
        with torch.no_grad():
            for known in rows[:, :-1].split(self.steps, 1):
                inputs = [torch.nn.functional.pad(known, (0, self.steps - known.shape[1])), *state]
                logits, *following = graph.run_flat(inputs)
                state = (following[0], following[1])
                yield inputs, logits[:, : known.shape[1]]

    def losses(self, graph: Graph) -> Tensor:
        logits = torch.cat([logits for _, logits in self._calls(graph, self.rows)], 1).double().transpose(1, 2)
        return torch.nn.functional.cross_entropy(logits, self.rows[:, 1:], reduction="none").sum(1)


TEXTS: dict[str, type[Stories] | type[Novel]] = {"stories260k": Stories, "llama_char105": Stories, "lstm": Novel}


def compared(one: Row, other: Row, counts: Sequence[int]) -> Row:
    """How much more NLL/token `one` has than `other`, and the standard error over texts (a ratio's: Cochran,
    "Sampling Techniques", 1977, section 2.11). counts: tokens of each text."""
    apart = [a - b for a, b in zip(one["NLL of each text"], other["NLL of each text"], strict=True)]
    mean = sum(apart) / sum(counts)
    left = [value - mean * count for value, count in zip(apart, counts, strict=True)]
    error = None  # of a single text
    if len(left) > 1:
        error = round(statistics.stdev(left) * math.sqrt(len(left)) / sum(counts), 5)
    return {"NLL/token apart": round(mean, 5), "standard error": error}


def checks(rows: Mapping[str, Any], counts: Sequence[int]) -> dict[str, Row]:
    """The inequalities of CHECKS whose rows are all there: lower NLL at no more bytes, unless said otherwise."""
    found = {}
    for better, worse, bytes_too in CHECKS:
        if better in rows and worse in rows:
            difference = compared(rows[better], rows[worse], counts)
            fits = not bytes_too or rows[better]["bytes"] <= rows[worse]["bytes"]
            holds = difference["NLL/token apart"] < 0 and fits
            found[f"{better} < {worse}"] = {"holds": holds, "no more bytes": fits, **difference}
    return found


def measure(name: str, options: argparse.Namespace, known: Known) -> None:
    language = TEXTS[name](name, options.limit)
    ctx = PassContext(calibration=language.calibration, seed=options.seed, progress=options.progress)
    counts = language.tokens.tolist()
    known["judged texts"], known["judged tokens"] = len(counts), sum(counts)
    known["calibrating tokens"] = sum(batch[0].numel() for batch in language.calibration)
    known.once("float", language.row, language.graph)
    for method in (m for section in options.sections if section in language.sections for m in SECTIONS[section]):
        if method.name not in known:
            start = time.perf_counter()
            graph = method.run(language.graph, language.layers, ctx)
            seconds = {"seconds": round(time.perf_counter() - start, 1)}
            row = language.row(graph)
            known[method.name] = row | seconds | compared(row, known["float"], counts)
    known.update(checks(dict(known), counts))


FIGURES = {name: partial(measure, name) for name in TEXTS}


def main(arguments: Sequence[str] | None = None) -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
        parser.add_argument("--seed", type=int, default=0)

    return statement.main("graphc.tools.perplexity", __doc__, FIGURES, arguments, add, ("seed",))


if __name__ == "__main__":
    sys.exit(main())
