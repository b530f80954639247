"""Inputs for calibration, which no benchmark scores: functions (count, batch) -> batches, `count` items in all."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor, nn

from graphc.tools.zoo import data, lstm, tokens
from graphc.tools.zoo.benchmarks import Preprocess

Inputs: TypeAlias = tuple[Tensor, ...]
Calibrate: TypeAlias = Callable[[int, int], Iterator[Inputs]]

IMAGENET = "imagenet_eval/imagenet_calibration300_224.npz"


def from_images(load: Callable[[int], Tensor], preprocess: Preprocess) -> Calibrate:
    """The images [count, C, H, W] of `load(count)`."""

    def calibrate(count: int, batch: int) -> Iterator[Inputs]:
        return ((preprocess(x),) for x in load(count).split(batch))

    return calibrate


def from_jpeg(name: str, preprocess: Preprocess) -> Calibrate:
    """The first images of a JPEG archive."""
    return from_images(lambda count: data.jpeg_images(name, count), preprocess)


def imagenet_mosaics(count: int) -> Tensor:
    """ImageNet's calibration images, four to a mosaic, cut to half a Kodak image: uint8 [count, 3, 256, 384]."""
    tiles = torch.unflatten(data.jpeg_images(IMAGENET, 4 * count), 0, (-1, 2, 2))
    return tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)[:, :, :256, :384]


def _sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One token for each row: [N, V] -> int64 [N, 1]."""
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)


def own_stories(build: Callable[[], nn.Module], context: int) -> Calibrate:
    """Windows [batch, context] that the language model itself writes (as in LLM-QAT, Liu et al., 2023), BOS first."""

    @cache
    def write(count: int) -> Tensor:
        model, generator = build(), torch.Generator().manual_seed(0)
        written = torch.full((count, context), tokens.BOS)
        for last in range(context - 1):
            # The network is causal, so what follows `last` does not matter; few different lengths run much faster.
            length = min(context, (last // 64 + 1) * 64)
            with torch.no_grad():
                logits = model(written[:, :length])[:, last]
            written[:, last + 1 : last + 2] = _sample(logits, generator)
        return written

    return lambda count, batch: ((x,) for x in write(count).split(batch))


def own_novel(build: Callable[[], nn.Module], steps: int) -> Calibrate:
    """Successive calls (tokens [batch, steps], h, c) on text that the recurrent network itself writes."""

    def calibrate(count: int, batch: int) -> Iterator[Inputs]:
        model, generator = build(), torch.Generator().manual_seed(0)
        token = torch.randint(lstm.VOCABULARY, (batch, 1), generator=generator)
        h = c = torch.zeros(lstm.LAYERS, batch, lstm.HIDDEN)
        for _ in range(0, count, batch):
            state, written = (h, c), []
            for _ in range(steps):
                written.append(token)
                with torch.no_grad():
                    logits, h, c = model(token, h, c)
                token = _sample(logits[:, -1], generator)
            yield torch.cat(written, dim=1), *state

    return calibrate


def story_sentences(length: int) -> Calibrate:
    """Sentences of the TinyStories as (ids, mask), each [batch, length]."""

    def calibrate(count: int, batch: int) -> Iterator[Inputs]:
        sentences = [sentence for story in data.stories() for sentence in story.replace("\n", " ").split(". ")]
        ids, mask = tokens.wordpiece(sentences[:count], length)
        return zip(ids.split(batch), mask.split(batch), strict=True)

    return calibrate
