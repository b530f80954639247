"""Integers times a scale, for the whole weight, for each row, or for each group of neighbours in a row.

    w = (q - zero) * scale

Symmetric: zero is the middle of the range, 2^(bits-1), and the scale takes the value of largest magnitude exactly to
the end of the longer half (as ggml's Q4_0 does), so that all 2^bits values are used. Asymmetric: scale and zero span
[min(w, 0), max(w, 0)]. Scales are rounded to their stored type first, codes to the rounded scales.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphc.encoding.adaround import adaptive_codes
from graphc.encoding.compensation import DAMPING, Final, compensated
from graphc.encoding.grid import Grid, clipped
from graphc.encoding.half_quadratic import refined
from graphc.errors import FormatError
from graphc.formats import Format, Shape, Stored
from graphc.graph import Graph, arguments
from graphc.operators.weights import pack

graphc_ops = torch.ops.graphc
_SCALES = {"f16": torch.float16, "f32": torch.float32}
_BY_MOMENTS = ("gptq", "adaround")
_LEGAL: dict[str, tuple[int | str, ...]] = {
    "bits": (2, 3, 4, 8),
    "scale": tuple(_SCALES),
    "range": ("max", "mse"),
    "rounding": ("nearest", "hqq", *_BY_MOMENTS),
    "order": ("natural", "activation"),
}


@dataclass(frozen=True)
class Linear(Format):
    """Parts: codes (int8 or uint8 [rows, columns] at 8 bits, else packed), scale, and zero_point where it is stored.

    bits: 2, 3, 4 or 8. group: columns that share a scale, or `channel` (a row), or `tensor`. scale: f16 or f32.
    range: max, or mse, the share of it that has the least squared error (weighted by the inputs' squares, where moments
    are given). rounding: nearest; hqq, with scales and zero points that outliers do not move (encoding.half_quadratic);
    or, by the moments of the layer's inputs, gptq (encoding.compensation) or adaround (encoding.adaround). damping,
    order: of gptq, its columns in the order natural or activation (largest inputs first). iterations: of adaround.
    """

    bits: int = 8
    group: int | str = "channel"
    symmetric: bool = True
    scale: str = "f16"
    range: str = "max"
    rounding: str = "nearest"
    damping: float = DAMPING
    order: str = "natural"
    iterations: int = 500

    def __post_init__(self) -> None:
        for what, legal in _LEGAL.items():
            if getattr(self, what) not in legal:
                raise FormatError(f"linear: {what}={getattr(self, what)} must be one of {', '.join(map(str, legal))}")
        if not isinstance(self.damping, int | float) or self.damping <= 0:
            raise FormatError(f"linear: damping={self.damping} must be a number above 0")
        if not isinstance(self.iterations, int) or self.iterations < 1:
            raise FormatError(f"linear: iterations={self.iterations} must be a number from 1")
        whole = isinstance(self.group, int) and self.group > 0
        if not whole and self.group not in ("channel", "tensor"):
            raise FormatError(f"linear: group={self.group} must be a number of columns, channel or tensor")

    @property
    def label(self) -> str:
        group = {"channel": "", "tensor": " per tensor"}.get(str(self.group), f" g{self.group}")
        return f"{'int' if self.symmetric else 'uint'}{self.bits}{group}"

    def encode(self, weight: Tensor, moments: Tensor | None = None) -> dict[str, Tensor]:
        columns = weight.shape[1]
        group = self._columns(columns)
        if columns % group:
            divisors = [str(size) for size in (256, 128, 64, 32, 16, 8) if columns % size == 0]
            raise FormatError(
                f"{self}: groups of {group} do not divide rows of {columns}; legal: group="
                + ", ".join([*divisors, "channel", "tensor"])
            )
        if not weight.isfinite().all():
            raise FormatError(f"{self}: the weight is NaN or infinite")
        if self.rounding in _BY_MOMENTS and moments is None:
            raise FormatError(
                f"{self} needs the moments of the layer's inputs, compress{{data=true}}; legal without: hqq"
            )
        grouped = weight.to(torch.float32).unflatten(1, (-1, group))
        grid = self._grid(grouped, moments)
        return self.parts(self._codes(grouped, grid, moments), grid)

    def parts(self, codes: Tensor, grid: Grid) -> dict[str, Tensor]:
        """What is stored of codes [rows, columns] on a grid whose scales and zeros are of groups [rows, groups, 1]."""
        codes = codes.to(torch.uint8)
        parts = {"scale": grid.scale.to(_SCALES[self.scale]).squeeze(-1)}
        if self.bits < 8:
            parts |= {"codes": pack(codes, self.bits)}
            parts |= {"zero_point": torch.tensor(2 ** (self.bits - 1), dtype=torch.uint8)} if self.symmetric else {}
        else:
            parts |= {"codes": (codes ^ 128).view(torch.int8) if self.symmetric else codes}
        return parts if self.symmetric else parts | {"zero_point": grid.zero.squeeze(-1).to(torch.uint8)}

    def _grid(self, grouped: Tensor, moments: Tensor | None) -> Grid:
        """Scales and zero points of groups [rows, groups, group], the scales as they are stored."""
        over = (0, 1, 2) if self.group == "tensor" else (2,)
        low, high = grouped.amin(over, keepdim=True).clamp(max=0), grouped.amax(over, keepdim=True).clamp(min=0)
        half, top = 2 ** (self.bits - 1), 2**self.bits - 1
        scale = torch.where(high > -low, -high, -low) / half if self.symmetric else (high - low) / top
        dtype = _SCALES[self.scale]
        stored = scale.to(dtype).to(torch.float32)
        if not stored.isfinite().all():
            raise FormatError(f"{self}: scales up to {float(scale.abs().max()):.3g} do not fit f16; use scale=f32")
        spanning = Grid(stored, torch.full_like(low, half), top)
        if not self.symmetric:
            spanning = Grid(stored, (-low / spanning.divisor).round().clamp(0, top), top)
        if self.range == "mse":
            weights = torch.ones(()) if moments is None else moments.diagonal().to(torch.float32)
            spanning = clipped(
                grouped, spanning, dtype, weights.expand(grouped[0].numel()).reshape(grouped[0].shape), over
            )
        if self.rounding == "hqq":
            return refined(grouped, spanning, dtype, not self.symmetric, over)
        return spanning

    def _codes(self, grouped: Tensor, grid: Grid, moments: Tensor | None) -> Tensor:
        if moments is None or self.rounding not in _BY_MOMENTS:
            return grid.codes(grouped).flatten(1)
        each, weight = grid.expanded(grouped.shape), grouped.flatten(1)
        if self.rounding == "adaround":
            return adaptive_codes(weight, moments, each, self.iterations)

        def rounded(w: Tensor, columns: Tensor, factor: Tensor) -> Final:
            scale, zero = each.scale[:, columns].t().contiguous(), each.zero[:, columns].t().contiguous()

            def final(i: int, column: Tensor) -> Tensor:
                one = Grid(scale[i], zero[i], each.top)
                return one.decode(one.codes(column))

            return final

        settled = compensated(weight, moments, rounded, damping=self.damping, sort=self.order == "activation")
        return each.codes(settled)

    def _columns(self, columns: int) -> int:
        return columns if isinstance(self.group, str) else self.group

    def express(self, graph: Graph, parts: Mapping[str, Tensor], shape: Shape, name: str) -> fx.Node:
        stored = {part: graph.add_weight(f"{name}.{part}", tensor) for part, tensor in sorted(parts.items())}
        q = stored["codes"]
        if self.bits < 8:
            q = graph.call(graphc_ops.unpack.default, q, self.bits, shape[1])
        group = self._columns(shape[1])
        return graph.call(graphc_ops.dequantize_groups.default, q, stored["scale"], stored.get("zero_point"), group)

    @classmethod
    def recognize(cls, node: fx.Node) -> Stored | None:
        if node.target is not graphc_ops.dequantize_groups.default:
            return None
        q, scale, zero, group = arguments(node)
        bits = 8
        if q.target is graphc_ops.unpack.default:
            q, bits, _ = arguments(q)
        parts = {"codes": q, "scale": scale} | ({} if zero is None else {"zero_point": zero})
        if any(part.op != "get_attr" for part in parts.values()) or bits not in (2, 3, 4, 8):
            return None
        columns = node.meta["type"].shape[-1]
        rank = len(scale.meta["type"].shape)
        per_row = rank > 1 and scale.meta["type"].shape[-2] == node.meta["type"].shape[-2] > 1
        symmetric = zero is None or not zero.meta["type"].shape
        found = cls(
            bits,
            group if group < columns else "channel" if per_row else "tensor",
            symmetric,
            "f16" if scale.meta["type"].dtype == torch.float16 else "f32",
        )
        return Stored(found, parts)
