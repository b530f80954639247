"""Signs, times a scale for each row.

    w[n, k] = scale[n] * sign(w[n, k])

The scale is the mean magnitude, which has the least squared error (Rastegari et al., "XNOR-Net", ECCV 2016, section
3.1); with the moments G of the layer's inputs it is the one for which the output loses least, (w G s) / (s G s) for
signs s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphc.errors import FormatError
from graphc.formats import Format, Shape, Stored
from graphc.formats.vector import Vector
from graphc.graph import Graph
from graphc.operators.weights import pack


@dataclass(frozen=True)
class Binary(Format):
    """Parts: codes (uint8 [rows, ceil(columns / 8)]: a bit for each weight, 1 from nought up), codebook (f16 [2, 1]: -1
    and 1) and, with `scale`, scale (f32 [rows, 1]). The expression is that of two codewords of one element."""

    scale: bool = True

    @property
    def label(self) -> str:
        return "binary" if self.scale else "signs"

    def encode(self, weight: Tensor, moments: Tensor | None = None) -> dict[str, Tensor]:
        if not weight.isfinite().all():
            raise FormatError(f"{self}: the weight is NaN or infinite")
        w = weight.to(torch.float32)
        positive = w >= 0
        parts = {
            "codes": pack(positive.to(torch.uint8), 1),
            "codebook": torch.tensor([[-1.0], [1.0]], dtype=torch.float16),
        }
        if not self.scale:
            return parts
        signs = torch.where(positive, 1.0, -1.0)
        form = torch.eye(w.shape[1]) if moments is None else moments.to(torch.float32)
        felt = signs @ form
        scale = (felt * w).sum(1, keepdim=True) / (felt * signs).sum(1, keepdim=True).clamp(min=1e-20)
        return parts | {"scale": scale}

    def express(self, graph: Graph, parts: Mapping[str, Tensor], shape: Shape, name: str) -> fx.Node:
        return _CODEWORDS.express(graph, parts, shape, name)

    @classmethod
    def recognize(cls, node: fx.Node) -> Stored | None:
        found = Vector.recognize(node)
        if found is None or tuple(found.parts["codebook"].meta["type"].shape) != (2, 1):
            return None
        return Stored(cls("scale" in found.parts), found.parts)


_CODEWORDS = Vector(d=1, codewords=2)
