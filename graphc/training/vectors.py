"""Trained codebooks: quantization-aware training of the `vector` format.

A latent weight in full precision is trained, and every step decodes it anew: each piece of d neighbours becomes its
codeword times a scale. Gradients pass to the latent weight as if nothing had been rounded, and to the codewords that
were used (top-1 attention with a straight-through estimator: VQ-QAT, arXiv 2604.23172).

    euclidean   code = argmin |w - c|
    cosine      code = argmax w.c / |c|, whatever the size of c: a codebook of any size is used from the start
    dkm         w becomes softmax(-|w - c|^2 / t) C, C iterated as in k-means, all of it differentiated (Cho et al.,
                "DKM: Differentiable k-Means Clustering Layer", ICLR 2022); hard codes at the end only. The baseline.

The scale is the projection sum(w.c) / sum(|c|^2), over a row where the format stores one for each row (4 bytes a row),
else over the weight, where the codebook takes it in (no byte). Soft DKM and Euclidean codes without stored scales have
none. A scale for each piece would cost more than the codes, and the format has none.

Of a sum `vector(...) + vector(...)` (residual codebooks) each term codes what those before it leave; with `codebooks`
above 1 (product quantization) each run of pieces has codewords of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphc.errors import TrainingError
from graphc.expressions import Sum
from graphc.formats import Format
from graphc.formats.vector import Vector
from graphc.graph import Graph
from graphc.operators.weights import pack
from graphc.trainable import Trainable
from graphc.training.stored_weight import stored_weights

aten = torch.ops.aten
Assignment = Literal["euclidean", "cosine", "dkm"]


@dataclass(frozen=True)
class VectorTraining:
    """How codebooks are trained.

    format: what is stored in the end, a vector format or a sum of them; `shared` is one codebook for all weights.
    initial: codewords by the format's own k-means, or `deviation` times normal numbers by the format's seed.
    temperature: of soft DKM, in mean squared norms of the pieces; iterations: of its k-means in each step.
    """

    format: Format = field(default_factory=Vector)
    assignment: Assignment = "cosine"
    initial: Literal["kmeans", "random"] = "kmeans"
    deviation: float = 0.3
    temperature: float = 0.05
    iterations: int = 5

    def __post_init__(self) -> None:
        first, *others = self.terms
        if others and any(term.shared for term in self.terms):
            raise TrainingError(f"{self.format}: the terms of a sum have codebooks of their own: use shared=false")
        if self.assignment == "dkm" and (first.shared or first.codebooks > 1 or others):
            raise TrainingError(f"{self.format}: dkm finds one codebook for each weight: use euclidean or cosine")
        if self.assignment == "cosine" and first.shared and not first.scale:
            raise TrainingError("cosine codes need a scale, which a shared codebook cannot take in: use scale=true")

    @property
    def terms(self) -> tuple[Vector, ...]:
        """The terms of the sum, or the format alone."""
        given = self.format.terms if isinstance(self.format, Sum) else (self.format,)
        found = tuple(term for term in given if isinstance(term, Vector))
        if len(found) < len(given):
            raise TrainingError(f"{self.format}: codebooks are those of vector, or of a sum of vectors")
        return found


class Codebook(nn.Module):
    """f32 [codewords, d] or [codebooks, codewords, d], which several weights may share; a parameter, or what soft DKM
    found last."""

    def __init__(self, value: Tensor, trained: bool) -> None:
        super().__init__()
        if trained:
            self.value: Tensor = nn.Parameter(value)
        else:
            self.register_buffer("value", value)


class VectorWeight(nn.Module):
    """The parametrization of a weight [O, ...], from the latent one to what will be decoded for it.

    form: what is stored for this term; rest: the term that codes what this one leaves.
    """

    def __init__(
        self, name: str, options: VectorTraining, form: Vector, codebook: Codebook, rest: VectorWeight | None = None
    ) -> None:
        super().__init__()
        self.name, self.options, self.form, self.codebook, self.rest = name, options, form, codebook, rest

    @classmethod
    def of(cls, name: str, options: VectorTraining, codebooks: Sequence[Codebook]) -> VectorWeight:
        """That of the first term, with a codebook for each."""
        coding = cls(name, options, options.terms[-1], codebooks[-1])
        for term, codebook in zip(options.terms[-2::-1], codebooks[-2::-1], strict=True):
            coding = cls(name, options, term, codebook, coding)
        return coding

    @property
    def format(self) -> Format:
        """Of all terms."""
        return self.options.format

    def forward(self, latent: Tensor) -> Tensor:
        rows = latent.flatten(1)
        with torch.autocast("cpu", enabled=False):  # which codeword is nearest is not asked in bf16
            if self.options.assignment == "dkm" and self.training:
                decoded = self._soft(rows)
            else:
                decoded = self._decoded(rows.detach()) + (rows - rows.detach())
        return decoded.reshape(latent.shape)

    def coded(self, latent: Tensor) -> Iterator[tuple[VectorWeight, Tensor, Tensor]]:
        """Each term with its codes, int64 [rows, pieces], and its scale: [rows, 1], or [1, 1] of the whole weight."""
        rows, term = latent.detach().flatten(1), self
        while True:
            codes, scale = term._assigned(rows)
            yield term, codes, scale
            if term.rest is None:
                return
            rows, term = rows - scale * term._found(codes, rows.shape[1]).detach(), term.rest

    @torch.no_grad()
    def parts(self, latent: Tensor) -> dict[str, Tensor]:
        """What the format stores."""
        parts: dict[str, Tensor] = {}
        for place, (term, codes, scale) in enumerate(self.coded(latent)):
            form, stored = term.form, codes.to(torch.uint8)
            codebook = term.codebook.value if form.scale else term.codebook.value * scale
            packed = stored if form.codewords == 256 else pack(stored, form.codewords.bit_length() - 1)
            prefix = "" if self.rest is None else f"{place}."
            parts |= {f"{prefix}codes": packed, f"{prefix}codebook": codebook.to(torch.float16)}
            if form.scale:
                parts[f"{prefix}scale"] = scale
        return parts

    @torch.no_grad()
    def fit(self, latent: Tensor) -> None:
        """Bring codebooks without scales to the weight's size: no code changes, but one learning rate fits both."""
        for term, _, scale in self.coded(latent):
            if not term.form.scale:
                term.codebook.value.mul_(scale)
                scale.fill_(1)  # what the next term is given is what it was

    def _decoded(self, rows: Tensor) -> Tensor:
        codes, scale = self._assigned(rows)
        decoded = scale * self._found(codes, rows.shape[1])
        return decoded if self.rest is None else decoded + self.rest._decoded(rows - decoded.detach())

    def _found(self, codes: Tensor, columns: int) -> Tensor:
        """f32 [rows, columns]: the codewords, not scaled."""
        pieces, codebooks = codes.shape[1], self.form.codebooks
        if codebooks > 1:
            codes = codes + torch.arange(pieces) * codebooks // pieces * self.form.codewords
        # Against index_put, the gradient of an embedding is summed in one order.
        return F.embedding(codes, self.codebook.value.flatten(0, -2)).flatten(1)[:, :columns]

    @torch.no_grad()
    def _assigned(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Codes int64 [rows, pieces], and the scale: [rows, 1], or [1, 1] of the whole weight."""
        count, form = len(rows), self.form
        centres = self.codebook.value.reshape(form.codebooks, form.codewords, form.d)
        if self.options.assignment == "cosine":
            codes = (self._runs(rows) @ F.normalize(centres, dim=2).mT).argmax(2)
        else:
            half = centres.square().sum(2).unsqueeze(1) / 2
            codes = torch.baddbmm(half, self._runs(rows / self._size(rows)), centres.mT, alpha=-1).argmin(2)
        codes = codes.reshape(form.codebooks, count, -1).transpose(0, 1).flatten(1)
        if self.options.assignment != "cosine" and not form.scale:
            return codes, torch.ones(1, 1)
        decoded = self._found(codes, rows.shape[1])
        over = (1,) if form.scale else (0, 1)
        return codes, (rows * decoded).sum(over, keepdim=True) / decoded.square().sum(over, keepdim=True).clamp(1e-20)

    def _runs(self, rows: Tensor) -> Tensor:
        """f32 [codebooks, rows * pieces / codebooks, d]: the pieces of each codebook."""
        runs = self._pieces(rows).reshape(len(rows), self.form.codebooks, -1, self.form.d)
        return runs.transpose(0, 1).flatten(1, 2)

    def _size(self, rows: Tensor) -> Tensor:
        """Root mean square of each row, [rows, 1], where rows have scales."""
        if not self.form.scale:
            return torch.ones(1, 1)
        size = rows.detach().square().mean(1, keepdim=True).sqrt()
        return torch.where(size > 0, size, 1.0)

    def _pieces(self, rows: Tensor) -> Tensor:
        """f32 [rows * pieces, d]; the last piece of a row is filled with noughts."""
        return F.pad(rows, (0, -rows.shape[1] % self.form.d)).reshape(-1, self.form.d)

    def _soft(self, rows: Tensor) -> Tensor:
        size = self._size(rows)
        pieces = self._pieces(rows / size)
        temperature = self.options.temperature * pieces.detach().square().sum(1).mean()
        centres = self.codebook.value
        for _ in range(self.options.iterations):
            attention = _attention(pieces, centres, temperature)
            centres = attention.t() @ pieces / attention.sum(0).clamp(min=1e-12).unsqueeze(1)
        self.codebook.value = centres.detach()
        decoded = _attention(pieces, centres, temperature) @ centres
        return decoded.reshape(len(rows), -1)[:, : rows.shape[1]] * size


def _attention(pieces: Tensor, centres: Tensor, temperature: Tensor) -> Tensor:
    """f32 [pieces, codewords]: softmax of the squared distances over the temperature, negative."""
    return ((2 * pieces @ centres.t() - centres.square().sum(1)) / temperature).softmax(1)


def vector_trainable(
    graph: Graph, options: VectorTraining, layers: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Trainable:
    """A Trainable whose convolutions and linear layers have trained codebooks; the other weights are parameters.

    layers, exclude: shell patterns of module paths, as in the pass `compress`. Raises TrainingError where none fits.
    """
    matrices: dict[str, Tensor] = {}
    for node in graph.calls:
        path = node.meta["path"]
        if node.target not in (aten.convolution.default, aten.linear.default):
            continue
        taken = not layers or any(fnmatch(path, pattern) for pattern in layers)
        weight = graph.weight(node.args[1])
        if taken and not any(fnmatch(path, pattern) for pattern in exclude) and weight is not None:
            matrices[str(node.args[1].target)] = weight.detach().flatten(1)  # type: ignore[union-attr]
    if not matrices:
        raise TrainingError(f"no layer of graph '{graph.name}' has a stored weight and a path that fits")
    module = Trainable(graph)
    form = options.format.fitted(matrices.values())
    shared: list[Codebook] = []
    for number, (name, matrix) in enumerate(matrices.items()):
        codebooks = shared or [
            Codebook(value, trained=options.assignment != "dkm") for value in _initial(options, form, matrix, number)
        ]
        shared = codebooks if options.terms[0].shared else []
        coding = VectorWeight.of(name, options, codebooks)
        if options.assignment == "cosine":
            coding.fit(module.weight(name))
        module.parametrize(name, coding)
    return module


def _initial(options: VectorTraining, form: Format, matrix: Tensor, number: int) -> list[Tensor]:
    """The first codebook of each term, for one weight."""
    if options.initial == "kmeans":
        parts = form.encode(matrix)
        return [parts[name].to(torch.float32) for name in sorted(parts) if name.endswith("codebook")]
    generator = torch.Generator().manual_seed(options.terms[0].seed + number)
    found = []
    for term in options.terms:
        pieces = -(-matrix.shape[1] // term.d)
        if pieces % term.codebooks:
            raise TrainingError(f"{term}: {pieces} pieces in a row cannot be shared out among its codebooks")
        size = (term.codebooks, term.codewords, term.d)[term.codebooks == 1 :]
        found.append(options.deviation * torch.randn(size, generator=generator))
    return found


def utilization(module: Trainable) -> float:
    """How evenly codewords are used, perplexity / K: 1 where all are used alike. The mean over the codebooks."""
    counts: dict[Codebook, Tensor] = {}
    trained = [(given, latent) for given, latent in stored_weights(module) if isinstance(given, VectorWeight)]
    for given, latent in trained:
        for term, codes, _ in given.coded(latent):
            runs = codes.unflatten(1, (term.form.codebooks, -1)).transpose(0, 1).flatten(1)
            used = torch.stack([torch.bincount(run, minlength=term.form.codewords) for run in runs])
            counts[term.codebook] = counts.get(term.codebook, 0) + used
    found = []
    for used in counts.values():
        share = used.to(torch.float64) / used.sum(1, keepdim=True)
        found.append(float(torch.exp(-torch.xlogy(share, share).sum(1)).mean()) / used.shape[1])
    return sum(found) / len(found)
