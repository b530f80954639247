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
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from graphc.errors import TrainingError
from graphc.formats import Format
from graphc.formats.vector import Vector
from graphc.graph import Graph
from graphc.operators.weights import pack
from graphc.trainable import Trainable

aten = torch.ops.aten
Assignment = Literal["euclidean", "cosine", "dkm"]


@dataclass(frozen=True)
class VectorTraining:
    """How codebooks are trained.

    format: what is stored in the end; `shared` is one codebook for all weights. initial: codewords by the format's own
    k-means, or `deviation` times normal numbers by the format's seed. temperature: of soft DKM, in mean squared norms
    of the pieces; iterations: of its k-means in each step.
    """

    format: Vector = field(default_factory=Vector)
    assignment: Assignment = "cosine"
    initial: Literal["kmeans", "random"] = "kmeans"
    deviation: float = 0.3
    temperature: float = 0.05
    iterations: int = 5

    def __post_init__(self) -> None:
        if self.format.codebooks > 1:
            raise TrainingError(f"{self.format}: a weight has one trained codebook; legal: codebooks=1")
        if self.assignment == "dkm" and self.format.shared:
            raise TrainingError("dkm finds the codebook of each weight: use shared=false, or euclidean or cosine")
        if self.assignment == "cosine" and self.format.shared and not self.format.scale:
            raise TrainingError("cosine codes need a scale, which a shared codebook cannot take in: use scale=true")


class Codebook(nn.Module):
    """f32 [codewords, d], which several weights may share; a parameter, or what soft DKM found last."""

    def __init__(self, value: Tensor, trained: bool) -> None:
        super().__init__()
        if trained:
            self.value: Tensor = nn.Parameter(value)
        else:
            self.register_buffer("value", value)


class VectorWeight(nn.Module):
    """The parametrization of a weight [O, ...], from the latent one to what will be decoded for it."""

    def __init__(self, name: str, options: VectorTraining, codebook: Codebook) -> None:
        super().__init__()
        self.name, self.options, self.codebook = name, options, codebook

    @torch.autocast("cpu", enabled=False)  # which codeword is nearest is not asked in bf16
    def forward(self, latent: Tensor) -> Tensor:
        rows = latent.flatten(1)
        if self.options.assignment == "dkm" and self.training:
            decoded = self._soft(rows)
        else:
            codes, scale = self._assigned(rows)
            # Against index_put, the gradient of an embedding is summed in one order.
            decoded = (scale * F.embedding(codes, self.codebook.value).flatten(1))[:, : rows.shape[1]]
            decoded = decoded + (rows - rows.detach())
        return decoded.reshape(latent.shape)

    @torch.no_grad()
    def codes(self, latent: Tensor) -> Tensor:
        """The codeword of each piece: int64 [rows, pieces]."""
        return self._assigned(latent.flatten(1))[0]

    @torch.no_grad()
    def parts(self, latent: Tensor) -> dict[str, Tensor]:
        """What the format stores."""
        form = self.options.format
        codes, scale = self._assigned(latent.flatten(1))
        stored = codes.to(torch.uint8)
        codebook = self.codebook.value if form.scale else self.codebook.value * scale
        parts = {"codes": stored if form.codewords == 256 else pack(stored, form.codewords.bit_length() - 1)}
        parts |= {"codebook": codebook.to(torch.float16)}
        return parts | {"scale": scale} if form.scale else parts

    @torch.no_grad()
    def fit(self, latent: Tensor) -> None:
        """Bring the codebook to the weight's size: no code changes, but a learning rate that fits one fits both."""
        self.codebook.value.mul_(self._assigned(latent.flatten(1))[1])

    @torch.no_grad()
    def _assigned(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Codes int64 [rows, pieces], and the scale: [rows, 1], or [1, 1] of the whole weight."""
        form, centres = self.options.format, self.codebook.value
        if self.options.assignment == "cosine":
            codes = (self._pieces(rows) @ F.normalize(centres, dim=1).t()).argmax(1)
        else:
            pieces = self._pieces(rows / self._size(rows))
            codes = torch.addmm(centres.square().sum(1) / 2, pieces, centres.t(), alpha=-1).argmin(1)
        codes = codes.reshape(len(rows), -1)
        if self.options.assignment != "cosine" and not form.scale:
            return codes, torch.ones(1, 1)
        decoded = centres[codes].flatten(1)[:, : rows.shape[1]]
        over = (1,) if form.scale else (0, 1)
        return codes, (rows * decoded).sum(over, keepdim=True) / decoded.square().sum(over, keepdim=True).clamp(1e-20)

    def _size(self, rows: Tensor) -> Tensor:
        """Root mean square of each row, [rows, 1], where rows have scales."""
        if not self.options.format.scale:
            return torch.ones(1, 1)
        size = rows.detach().square().mean(1, keepdim=True).sqrt()
        return torch.where(size > 0, size, 1.0)

    def _pieces(self, rows: Tensor) -> Tensor:
        """f32 [rows * pieces, d]; the last piece of a row is filled with noughts."""
        return F.pad(rows, (0, -rows.shape[1] % self.options.format.d)).reshape(-1, self.options.format.d)

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
    codebook: Codebook | None = None
    for number, (name, matrix) in enumerate(matrices.items()):
        if codebook is None or not options.format.shared:
            codebook = Codebook(_initial(options, form, matrix, number), trained=options.assignment != "dkm")
        latent = module.weight(name)
        place = next(place for place, value in module.named_parameters() if value is latent)
        weight = VectorWeight(name, options, codebook)
        if options.assignment == "cosine" and not options.format.scale:
            weight.fit(latent)
        parametrize.register_parametrization(module, place, weight)
    return module


def _initial(options: VectorTraining, form: Format, matrix: Tensor, number: int) -> Tensor:
    if options.initial == "kmeans":
        return form.encode(matrix)["codebook"].to(torch.float32)
    generator = torch.Generator().manual_seed(options.format.seed + number)
    return options.deviation * torch.randn(options.format.codewords, options.format.d, generator=generator)


def vector_weights(module: Trainable) -> list[tuple[VectorWeight, Tensor]]:
    """The weights with trained codebooks, and the latent weights [O, ...] behind them."""
    chains = module.parametrizations.values() if parametrize.is_parametrized(module) else ()  # type: ignore[operator]
    return [(chain[0], chain.original) for chain in chains if isinstance(chain[0], VectorWeight)]


def express_vectors(module: Trainable) -> Graph:
    """A new graph in which each trained codebook is the format's own expression over stored parts.

    Parts that are equal, such as a shared codebook, are one after the pass `eliminate_common_subexpressions`.
    """
    result = module.graph()
    for given, latent in vector_weights(module):
        reading = [node for node in result if node.op == "get_attr" and node.target == given.name]
        with result.at(reading[0], path=next(iter(reading[0].users)).meta["path"]):
            shape = (len(latent), latent[0].numel())
            decoded = given.options.format.express(result, given.parts(latent), shape, given.name)
            if latent.dim() != 2:
                decoded = result.call(aten.view.default, decoded, list(latent.shape))
        for node in reading:
            node.replace_all_uses_with(decoded)
    result.drop_unused()
    return result


def utilization(module: Trainable) -> float:
    """How evenly codewords are used, perplexity / K: 1 where all are used alike. The mean over the codebooks."""
    codes: dict[Codebook, list[Tensor]] = {}
    for given, latent in vector_weights(module):
        codes.setdefault(given.codebook, []).append(given.codes(latent).flatten())
    found = []
    for codebook, lists in codes.items():
        size = len(codebook.value)
        share = torch.bincount(torch.cat(lists), minlength=size).to(torch.float64) / sum(map(len, lists))
        found.append(float(torch.exp(-torch.xlogy(share, share).sum())) / size)
    return sum(found) / len(found)
