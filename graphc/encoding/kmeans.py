"""k-means over pieces of weights (Lloyd, "Least Squares Quantization in PCM", 1982), started by k-means++ (Arthur &
Vassilvitskii, 2007); squared errors may be weighted, and angles may stand for distances (spherical k-means, Dhillon &
Modha, 2001)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_SEEDING = 1 << 13  # pieces among which k-means++ looks
_HELD = 1 << 18  # distances at once: what a cache holds


@dataclass(frozen=True)
class Pieces:
    """Vectors f32 [count, d], the weight of each squared error (the same shape; None: 1), and whether the codeword at
    the smallest angle is taken instead of the nearest."""

    values: Tensor
    weights: Tensor | None = None
    cosine: bool = False

    def at(self, places: Tensor) -> Pieces:
        return Pieces(self.values[places], None if self.weights is None else self.weights[places], self.cosine)

    def distances(self, centres: Tensor) -> Tensor:
        """The weighted squared distance of each piece from a centre [d], or from one for each [count, d]: [count]."""
        squares = (self.values - centres).square()
        return (squares if self.weights is None else squares * self.weights).sum(1)

    def assigned(self, centres: Tensor) -> Tensor:
        """The centre of each piece, int64 [count]."""
        squares, half = centres.square().t(), centres.square().sum(1) / 2
        found, chunk = [], max(1, _HELD // len(centres))
        for start in range(0, len(self.values), chunk):
            values = self.values[start : start + chunk]
            weights = None if self.weights is None else self.weights[start : start + chunk]
            part = values if weights is None else values * weights
            if self.cosine:
                size = (2 * half if weights is None else weights @ squares).clamp(min=1e-20).sqrt()
                found.append((part @ centres.t() / size).argmax(1))
                continue
            own = (part * values).sum(1, keepdim=True)
            if weights is None:
                distances = torch.addmm(own + 2 * half, part, centres.t(), alpha=-2)
            else:  # sum of w (v - c)^2 as one product
                distances = torch.addmm(own, torch.cat([part, weights], 1), torch.cat([-2 * centres.t(), squares]))
            found.append(_least(distances))
        return torch.cat(found)

    def means(self, nearest: Tensor, centres: Tensor) -> Tensor:
        """The weighted mean of each centre's pieces, element by element; where nothing counts the centre stays."""
        sums, counts = torch.zeros_like(centres), torch.zeros_like(centres)
        weights = torch.ones_like(self.values) if self.weights is None else self.weights
        sums.index_add_(0, nearest, self.values * weights)
        counts.index_add_(0, nearest, weights)
        return torch.where(counts > 0, sums / torch.where(counts > 0, counts, 1.0), centres)


def _least(distances: Tensor) -> Tensor:
    """Where each row [count, k] is least, int64 [count]; what differs by less than k / 2^24 counts as equal.

    Floats that are not negative compare as integers: with the place in the lowest bits the least of them tells where it
    is. torch finds the least value of a row several times faster than its place.
    """
    last = (1 << (distances.shape[1] - 1).bit_length()) - 1
    keys = distances.clamp_(min=0).view(torch.int32).bitwise_and_(~last)
    keys.bitwise_or_(torch.arange(distances.shape[1], dtype=torch.int32))
    return keys.amin(1).bitwise_and_(last).to(torch.int64)


def sample(pieces: Pieces, most: int, generator: torch.Generator) -> Pieces:
    """At most `most` of the pieces, drawn at random."""
    count = len(pieces.values)
    return pieces if count <= most else pieces.at(torch.randint(count, (most,), generator=generator))


def kmeans(pieces: Pieces, codewords: int, iterations: int, generator: torch.Generator) -> Tensor:
    """f32 [codewords, d]; one that no piece takes moves to the piece that is farthest from its own."""
    centres = _seeds(sample(pieces, _SEEDING, generator), codewords, generator)
    for _ in range(iterations):
        nearest = pieces.assigned(centres)
        idle = (torch.bincount(nearest, minlength=codewords) == 0).nonzero().flatten()
        if len(idle):
            far = pieces.distances(centres[nearest]).topk(min(len(idle), len(nearest))).indices
            nearest[far] = idle[: len(far)]
        centres = pieces.means(nearest, centres)
    return centres


def _seeds(pieces: Pieces, codewords: int, generator: torch.Generator) -> Tensor:
    """k-means++: each further centre is a piece drawn in proportion to its distance from those before."""
    first = torch.randint(len(pieces.values), (1,), generator=generator)
    chosen = [pieces.values[first]]
    distance = pieces.distances(chosen[0])
    for _ in range(codewords - 1):
        place = torch.multinomial(distance, 1, generator=generator) if float(distance.sum()) > 0 else first
        chosen.append(pieces.values[place])
        distance = torch.minimum(distance, pieces.distances(chosen[-1]))
    return torch.cat(chosen)
