"""A product of two thin matrices, by randomized subspace iteration.

    w = left @ right,  left [rows, rank], right [rank, columns]

The range of w is found by multiplying random vectors by w and its transpose in turn, made orthonormal each time (Halko,
Martinsson & Tropp, "Finding Structure with Randomness", 2011, algorithm 4.4); the singular value decomposition is then
one of a small matrix. Two iterations come within about 2 % of the smallest possible Frobenius error; the spectral error
may be further off. The singular values are shared evenly between the factors, so that neither is hard to compress:
with factors=int8 both are stored as integers with a scale for each row, at a quarter of the bytes.

With the moments G = L L^T of the layer's inputs it is w @ L that is approximated, and right is multiplied by L^-1: the
error of the output, |(w - left @ right) @ L|, is then the least of its rank (Wang et al., "SVD-LLM", ICLR 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphc.encoding.compensation import square_root
from graphc.errors import FormatError
from graphc.formats import Format, Shape, Stored
from graphc.formats.linear import Linear
from graphc.graph import Graph, arguments

aten = torch.ops.aten
DAMPING = 1e-5  # of the moments, so that they can be factored


@dataclass(frozen=True)
class LowRank(Format):
    """Parts: left (f32 [rows, rank]) and right (f32 [rank, columns]), or the parts of `linear` for each of them,
    `left.codes`, ...

    iterations: of the subspace. oversampling: further vectors that are iterated and dropped at the end. factors: f32 or
    int8.
    """

    rank: int = 64
    iterations: int = 2
    oversampling: int = 8
    seed: int = 0
    factors: str = "f32"

    def __post_init__(self) -> None:
        for what, least in (("rank", 1), ("iterations", 0), ("oversampling", 0), ("seed", 0)):
            value = getattr(self, what)
            if not isinstance(value, int) or value < least:
                raise FormatError(f"low_rank: {what}={value} must be a number from {least}")
        if self.factors not in ("f32", "int8"):
            raise FormatError(f"low_rank: factors={self.factors} must be one of f32, int8")

    @property
    def label(self) -> str:
        return f"rank {self.rank}" + (" int8" if self.factors == "int8" else "")

    def encode(self, weight: Tensor, moments: Tensor | None = None) -> dict[str, Tensor]:
        rows, columns = weight.shape
        if self.rank * (rows + columns) >= rows * columns:
            most = (rows * columns - 1) // (rows + columns)
            raise FormatError(f"{self}: factors of [{rows}, {columns}] are smaller than it up to rank={most}")
        if not weight.isfinite().all():
            raise FormatError(f"{self}: the weight is NaN or infinite")
        w = weight.to(torch.float32)
        whitening = None
        if moments is not None:
            whitening = square_root(moments, DAMPING)
            w = w @ whitening.to(torch.float32)
        left, right = self._factors(w)
        if whitening is not None:
            right = torch.linalg.solve_triangular(whitening, right.to(torch.float64), upper=True, left=False)
        factors = {"left": left.contiguous(), "right": right.to(torch.float32).contiguous()}
        if self.factors == "f32":
            return factors
        return {f"{side}.{part}": t for side, factor in factors.items() for part, t in _INT8.encode(factor).items()}

    def _factors(self, w: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = w.shape
        width = min(self.rank + self.oversampling, rows, columns)
        generator = torch.Generator().manual_seed(self.seed)
        y = w @ torch.randn(columns, width, generator=generator)
        for _ in range(self.iterations):
            z = torch.linalg.qr(w.t() @ torch.linalg.qr(y).Q).Q
            y = w @ z
        basis = torch.linalg.qr(y).Q
        u, values, v = torch.linalg.svd(basis.t() @ w, full_matrices=False)
        root = values[: self.rank].sqrt()
        return basis @ (u[:, : self.rank] * root), root.unsqueeze(1) * v[: self.rank]

    def express(self, graph: Graph, parts: Mapping[str, Tensor], shape: Shape, name: str) -> fx.Node:
        left, right = (self._factor(graph, parts, name, side, shape) for side in ("left", "right"))
        return graph.call(aten.mm.default, left, right)

    def _factor(self, graph: Graph, parts: Mapping[str, Tensor], name: str, side: str, shape: Shape) -> fx.Node:
        if self.factors == "f32":
            return graph.add_weight(f"{name}.{side}", parts[side])
        own = {part: parts[f"{side}.{part}"] for part in ("codes", "scale")}
        size = (shape[0], self.rank) if side == "left" else (self.rank, shape[1])
        return _INT8.express(graph, own, size, f"{name}.{side}")

    @classmethod
    def recognize(cls, node: fx.Node) -> Stored | None:
        if node.target is not aten.mm.default:
            return None
        left, right = arguments(node)
        rank = left.meta["type"].shape[1]
        if left.op == right.op == "get_attr":
            return Stored(cls(rank), {"left": left, "right": right})
        found = {"left": Linear.recognize(left), "right": Linear.recognize(right)}
        parts = {f"{side}.{part}": n for side, own in found.items() if own for part, n in own.parts.items()}
        same = all(own is not None and own.format == _INT8 for own in found.values())
        return Stored(cls(rank, factors="int8"), parts) if same else None


_INT8 = Linear()
