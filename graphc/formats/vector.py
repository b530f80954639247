"""Codewords by index: each piece of `d` neighbours in a row is one of `codewords` vectors, times the row's scale.

    w[n, j*d : (j+1)*d] = scale[n] * codebook[codes[n, j]]

With `codebooks` above 1 the pieces of a row lie in so many runs of equal length, each with a codebook of its own
(product quantization: Jegou et al., "Product Quantization for Nearest Neighbor Search", 2011; for weights Gong et al.,
"Compressing Deep Convolutional Networks using Vector Quantization", 2014, section 3.3). Residual codebooks are sums:
vector + vector (graphc.expressions).

A codebook is found by k-means on a sample of the pieces (encoding.kmeans); then every piece counts once: assign,
average, round to f16, assign. Rows are scaled to a root mean square of 1 before, so that one codebook serves them all,
and those of other layers. With the moments of the layer's inputs each squared error counts by the mean square of the
input that it meets (and its row's scale), and the last scale is the one for which the row's output loses least.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx

from graphc.encoding.kmeans import Pieces, kmeans, sample
from graphc.errors import FormatError
from graphc.formats import Format, Shape, Stored
from graphc.graph import Graph, arguments
from graphc.operators.weights import pack

aten, graphc_ops = torch.ops.aten, torch.ops.graphc

_SAMPLE = 1 << 15  # pieces that k-means sees


@dataclass(frozen=True)
class Vector(Format):
    """Parts: codes (uint8 [rows, ceil(columns / d)], packed below 256 codewords), codebook (f16 [codewords, d], or
    [codebooks, codewords, d]) and, with `scale`, scale (f32 [rows, 1]).

    d: elements of a codeword. codewords: a power of two from 2 to 256. codebooks: a divisor of the pieces of a row:
    piece j of J has codebook j * codebooks // J. shared: one codebook for all layers of a pass, so that layers which
    read one input share its tables of partial products. assignment: a piece has the codeword that
    is nearest (euclidean) or that has the smallest angle to it (cosine; the row's scale is then the projection).
    iterations, seed: of k-means. Where d does not divide the columns, the last piece of a row is filled with noughts.
    """

    d: int = 4
    codewords: int = 256
    codebooks: int = 1
    scale: bool = True
    shared: bool = False
    assignment: str = "euclidean"
    iterations: int = 20
    seed: int = 0
    codebook: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.codewords not in (2, 4, 8, 16, 32, 64, 128, 256):
            raise FormatError(f"vector: codewords={self.codewords} must be a power of two from 2 to 256")
        if self.assignment not in ("euclidean", "cosine"):
            raise FormatError(f"vector: assignment={self.assignment} must be one of euclidean, cosine")
        for what, least in (("d", 1), ("codebooks", 1), ("iterations", 0), ("seed", 0)):
            value = getattr(self, what)
            if not isinstance(value, int) or value < least:
                raise FormatError(f"vector: {what}={value} must be a number from {least}")
        if self.shared and self.codebooks > 1:
            raise FormatError("vector: shared=true is one codebook for all layers; legal: codebooks=1")

    @property
    def label(self) -> str:
        return f"vq{self.codewords} d{self.d}" + (f" x{self.codebooks}" if self.codebooks > 1 else "")

    @property
    def _bits(self) -> int:
        return int(math.log2(self.codewords))

    def fitted(self, weights: Iterable[Tensor]) -> Format:
        if not self.shared:
            return self
        generator = torch.Generator().manual_seed(self.seed)
        samples = [sample(Pieces(self._pieces(weight)[0]), _SAMPLE // 4, generator).values for weight in weights]
        if not samples:
            return self
        pieces = Pieces(torch.cat(samples), cosine=self.assignment == "cosine")
        return replace(self, codebook=self._centres(pieces, generator).to(torch.float16))

    def encode(self, weight: Tensor, moments: Tensor | None = None) -> dict[str, Tensor]:
        values, scale = self._pieces(weight)
        weights = None if moments is None else self._weights(scale, moments)
        generator = torch.Generator().manual_seed(self.seed)
        found = [self._coded(pieces, generator) for pieces in self._runs(values, weights, len(weight))]
        codes = torch.cat([codes.reshape(len(weight), -1) for codes, _ in found], 1)
        codebook = torch.stack([codebook for _, codebook in found]) if self.codebooks > 1 else found[0][1]
        if self.scale:  # the factor that is best for the codewords that a row now has
            decoded = graphc_ops.lookup(codes, codebook)[:, : weight.shape[1]]
            felt = decoded if moments is None else decoded @ moments.to(torch.float32)
            fitted = (felt * weight.to(torch.float32)).sum(1) / (felt * decoded).sum(1).clamp(min=1e-20)
            scale = torch.where(fitted > 0, fitted, scale.squeeze(1)).unsqueeze(1)
        parts = {"codes": codes if self._bits == 8 else pack(codes, self._bits), "codebook": codebook}
        return parts | {"scale": scale} if self.scale else parts

    def _runs(self, values: Tensor, weights: Tensor | None, rows: int) -> list[Pieces]:
        """The pieces of each codebook, from those [rows * pieces, d] of all."""
        count = len(values) // rows
        if count % self.codebooks:
            legal = ", ".join(str(size) for size in range(1, min(count, 64) + 1) if count % size == 0)
            raise FormatError(f"{self}: {count} pieces in a row for {self.codebooks} codebooks; legal: {legal}")

        def run(of: Tensor, i: int) -> Tensor:
            own: Tensor = of.unflatten(0, (rows, self.codebooks, -1))[:, i]
            return own.flatten(0, 1)

        cosine = self.assignment == "cosine"
        numbers = range(self.codebooks)
        return [Pieces(run(values, i), None if weights is None else run(weights, i), cosine) for i in numbers]

    def _coded(self, pieces: Pieces, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The codes of the pieces, uint8 [count], and their codebook, f16 [codewords, d]."""
        codebook = self.codebook
        if codebook is None:
            found = self._centres(pieces, generator)
            codebook = pieces.means(pieces.assigned(found), found).to(torch.float16)
        if not codebook.isfinite().all():
            raise FormatError(f"{self}: codewords do not fit f16; use scale=true")
        return pieces.assigned(codebook.to(torch.float32)).to(torch.uint8), codebook

    def _centres(self, pieces: Pieces, generator: torch.Generator) -> Tensor:
        return kmeans(sample(pieces, _SAMPLE, generator), self.codewords, self.iterations, generator)

    def _weights(self, scale: Tensor, moments: Tensor) -> Tensor:
        """What a squared error in each element of the pieces costs: f32 [rows * ceil(columns / d), d]."""
        squares = scale.square() * moments.diagonal().to(torch.float32)
        return torch.nn.functional.pad(squares, (0, -len(moments) % self.d)).reshape(-1, self.d)

    def _pieces(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Pieces f32 [rows * ceil(columns / d), d] of the scaled rows, and the scales [rows, 1]."""
        if not weight.isfinite().all():
            raise FormatError(f"{self}: the weight is NaN or infinite")
        rows = weight.to(torch.float32)
        scale = torch.ones(len(rows), 1)
        if self.scale:
            size = rows.square().mean(1, keepdim=True).sqrt()
            scale = torch.where(size > 0, size, 1.0)
            rows = rows / scale
        return torch.nn.functional.pad(rows, (0, -rows.shape[1] % self.d)).reshape(-1, self.d), scale

    def express(self, graph: Graph, parts: Mapping[str, Tensor], shape: Shape, name: str) -> fx.Node:
        stored = {part: graph.add_weight(f"{name}.{part}", tensor) for part, tensor in sorted(parts.items())}
        pieces = -(-shape[1] // self.d)
        codes = stored["codes"]
        if self._bits < 8:
            codes = graph.call(graphc_ops.unpack.default, codes, self._bits, pieces)
        weight = graph.call(graphc_ops.lookup.default, codes, stored["codebook"])
        if pieces * self.d != shape[1]:
            weight = graph.call(aten.slice.Tensor, weight, 1, 0, shape[1], 1)
        if "scale" in stored:
            weight = graph.call(aten.mul.Tensor, weight, stored["scale"])
        return weight

    @classmethod
    def recognize(cls, node: fx.Node) -> Stored | None:
        parts: dict[str, fx.Node] = {}
        if node.target is aten.mul.Tensor and isinstance(node.args[1], fx.Node):
            node, parts["scale"] = node.args[:2]  # type: ignore[assignment]
            rows = node.meta["type"].shape[0] if node.op == "call_function" else 0
            if parts["scale"].meta["type"].shape != (rows, 1):
                return None
        if node.target is aten.slice.Tensor and list(arguments(node)[1:3]) == [1, 0] and arguments(node)[4] == 1:
            node = node.args[0]  # type: ignore[assignment]
        if node.target is not graphc_ops.lookup.default:
            return None
        codes, parts["codebook"] = node.args[:2]  # type: ignore[assignment]
        if codes.target is graphc_ops.unpack.default:  # type: ignore[union-attr]
            codes = codes.args[0]  # type: ignore[union-attr]
        parts["codes"] = codes  # type: ignore[assignment]
        *spaces, codewords, d = parts["codebook"].meta["type"].shape
        if any(part.op != "get_attr" for part in parts.values()) or codewords not in _SIZES:
            return None
        return Stored(cls(d, codewords, spaces[0] if spaces else 1, "scale" in parts), parts)


_SIZES = tuple(2**bits for bits in range(1, 9))
