"""The evaluation protocols behind the baselines: what is fed to a network, and what is made of its outputs.

A protocol is a function (run, limit, batch) -> {metric: value}. `run(*inputs)` takes torch tensors and returns the
network's outputs as torch tensors or numpy arrays, alone or in a tuple or list; `limit` caps the items of the data
(images, stories, pairs, streams; None: all) and `batch` is the size of the batches (the last one may be smaller).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from graphc.tools.zoo import data, tokens

Run: TypeAlias = Callable[..., Any]
Preprocess: TypeAlias = Callable[[Tensor], Tensor]
Protocol: TypeAlias = Callable[[Run, int | None, int], dict[str, float]]


@dataclass(frozen=True)
class Benchmark:
    """A protocol on named data, and the float network's figures there; the first metric is the main one."""

    data: str
    protocol: Protocol
    baseline: dict[str, float]


def outputs_of(result: Any) -> list[Tensor]:
    """What `run` returned as a flat list of torch tensors."""
    results = result if isinstance(result, tuple | list) else [result]
    return [each if isinstance(each, Tensor) else torch.tensor(np.asarray(each)) for each in results]


def classification(
    load: Callable[[int | None], tuple[Tensor, Tensor]], preprocess: Preprocess, topk: Sequence[int] = (1,)
) -> Protocol:
    """`load(limit)` gives inputs [N, ...] and labels [N]; metrics "top-k %"."""

    def protocol(run: Run, limit: int | None, batch: int) -> dict[str, float]:
        inputs, labels = load(limit)
        ranked = torch.cat([outputs_of(run(preprocess(x)))[0].topk(max(topk)).indices for x in inputs.split(batch)])
        hits = ranked == labels[:, None]
        return {f"top-{k} %": 100 * hits[:, :k].any(1).double().mean().item() for k in topk}

    return protocol


def story_windows(encode: Callable[[str], list[int]], context: int, limit: int | None = None) -> tuple[Tensor, Tensor]:
    """The windows of the first `limit` stories."""
    return windows(encode, context, data.stories()[:limit])


def windows(encode: Callable[[str], list[int]], context: int, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Inputs and targets, both int64 [windows, context]: each text alone in non-overlapping windows.

    A text's last window is padded with token 0, whose target is -100 (which cross entropy ignores).
    """
    inputs, targets = [], []
    for story in texts:
        ids = torch.tensor(encode(story))
        for known, following in zip(ids[:-1].split(context), ids[1:].split(context), strict=True):
            missing = context - len(known)
            inputs.append(F.pad(known, (0, missing)))
            targets.append(F.pad(following, (0, missing), value=-100))
    return torch.stack(inputs), torch.stack(targets)


def story_likelihood(encode: Callable[[str], list[int]], context: int) -> Protocol:
    """Mean negative log likelihood (natural) of every token after BOS, per token; bits per character of the text."""

    def protocol(run: Run, limit: int | None, batch: int) -> dict[str, float]:
        inputs, targets = story_windows(encode, context, limit)
        nats = 0.0
        for x, expected in zip(inputs.split(batch), targets.split(batch), strict=True):
            logits = outputs_of(run(x))[0]
            nats += F.cross_entropy(logits.flatten(0, 1).double(), expected.flatten(), reduction="sum").item()
        mean = nats / int((targets >= 0).sum())
        characters = sum(map(len, data.stories()[:limit]))
        return {"NLL/token": mean, "perplexity": math.exp(mean), "bits/char": nats / math.log(2) / characters}

    return protocol


def novel_likelihood(streams: int, steps: int, layers: int, hidden: int) -> Protocol:
    """Bits per character of a recurrent network on parallel streams; `run(tokens, h, c)` makes `steps` steps a call.

    `batch` streams run together, each carrying its state from zero; the last call is padded with token 0.
    """

    def protocol(run: Run, limit: int | None, batch: int) -> dict[str, float]:
        text = data.novel()
        rows = text[: len(text) // streams * streams].view(streams, -1)[:limit]
        nats = 0.0
        for stream in rows.split(batch):
            h = c = torch.zeros(layers, len(stream), hidden)
            for known, following in zip(stream[:, :-1].split(steps, 1), stream[:, 1:].split(steps, 1), strict=True):
                logits, h, c = outputs_of(run(F.pad(known, (0, steps - known.shape[1])), h, c))
                logits = logits[:, : known.shape[1]].flatten(0, 1).double()
                nats += F.cross_entropy(logits, following.flatten(), reduction="sum").item()
        return {"bits/char": nats / math.log(2) / rows[:, 1:].numel()}

    return protocol


def average_ranks(values: Tensor) -> Tensor:
    """Ranks from 1, equal values sharing the mean of theirs: [N] -> float64 [N]."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = (last - (counts - 1) / 2)[inverse]
    return ranks


def spearman(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation of two vectors."""
    return torch.corrcoef(torch.stack([average_ranks(a), average_ranks(b)]))[0, 1].item()


def roc_auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve, through the Mann-Whitney statistic: scores [N], positive bool [N]."""
    positives = int(positive.sum())
    above = average_ranks(scores)[positive].sum().item() - positives * (positives + 1) / 2
    return above / (positives * (len(positive) - positives))


def sentence_similarity(name: str, length: int) -> Protocol:
    """Spearman's correlation of the gold scores and the cosines of unit embeddings; `run(ids, mask)`."""

    def protocol(run: Run, limit: int | None, batch: int) -> dict[str, float]:
        pairs, gold = data.sentence_pairs(name, limit)
        sentences = sorted({sentence for pair in pairs for sentence in pair})
        ids, mask = tokens.wordpiece(sentences, length)
        embedded = [outputs_of(run(*x))[0] for x in zip(ids.split(batch), mask.split(batch), strict=True)]
        embedding = dict(zip(sentences, torch.cat(embedded).double(), strict=True))
        cosines = torch.stack([embedding[first] @ embedding[second] for first, second in pairs])
        return {"Spearman": spearman(cosines, gold)}

    return protocol


def retina_images(name: str, limit: int | None = None) -> Tensor:
    """DRIVE images / 255, zero-padded right and bottom to multiples of 4: [N, 1, 584, 568]."""
    return F.pad(data.raw_images(name, limit=limit) / 255, (0, 3))


def vessel_segmentation(name: str) -> Protocol:
    """Vessel probability (channel 1) inside the field of view, all images' pixels together."""

    def protocol(run: Run, limit: int | None, batch: int) -> dict[str, float]:
        fov, vessels = (data.bits(name, key, 565, limit) for key in ("fov", "vessels"))
        probabilities = [outputs_of(run(x))[0][:, 1, :584, :565] for x in retina_images(name, limit).split(batch)]
        scores, truth = torch.cat(probabilities)[fov], vessels[fov]
        found = scores >= 0.5
        dice = 2 * (found & truth).sum() / (found.sum() + truth.sum())
        accuracy = (found == truth).double().mean()
        return {"AUC": roc_auc(scores, truth), "Dice": dice.item(), "accuracy": accuracy.item()}

    return protocol


def super_resolution() -> Protocol:
    """Mean PSNR over the Kodak images, RGB in [0, 1]; one image a call (`batch` is not used), in two orientations."""

    def protocol(run: Run, limit: int | None, batch: int) -> dict[str, float]:
        errors = [
            F.mse_loss(outputs_of(run(small / 255))[0], large / 255).item() for small, large in data.kodak_images(limit)
        ]
        return {"PSNR dB": sum(-10 * math.log10(error) for error in errors) / len(errors)}

    return protocol
