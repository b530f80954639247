"""Images that networks of the zoo train on, and how they are varied."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graphc.tools.zoo import data
from graphc.tools.zoo.catalog import Entry


def training_images(entry: Entry, count: int | None = None) -> tuple[Tensor, Tensor]:
    """CIFAR-10's first JPEG training images as the network takes them, f32 [N, 3, 32, 32], and labels, int64 [N]."""
    labels = data.labels("cifar10/jpeg_train.npz", count)
    return torch.cat([images for (images,) in entry.calibration(len(labels))]), labels


def augmented(batch: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """The first tensor's images [N, C, H, W] each moved by up to four pixels, nought coming in, and every second one
    mirrored. The result lies channels last, in which convolutions train faster."""
    images, *rest = batch
    count, _, height, width = images.shape
    rows, columns = (torch.randint(0, 9, (count, 1), generator=generator) + torch.arange(n) for n in (height, width))
    mirrored = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(images, (4, 4, 4, 4)).permute(0, 2, 3, 1)
    moved = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return [moved.permute(0, 3, 1, 2), *rest]
