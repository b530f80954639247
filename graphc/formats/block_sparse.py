"""Block sparsity: the blocks of largest Euclidean norm are kept, and a bit for each block says which those are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphc.errors import FormatError
from graphc.formats import Format, Shape, Stored
from graphc.formats.sparse import stored_values
from graphc.graph import Graph, arguments
from graphc.operators.weights import pack

graphc_ops = torch.ops.graphc


@dataclass(frozen=True)
class BlockSparse(Format):
    """Parts: values (f16 or f32 [kept, height, width], row-major) and mask (uint8, a bit for each block:
    [rows / height, ceil(columns / width / 8)]).

    height, width: of a block, in rows and columns. density: the share of blocks that is kept.
    """

    height: int = 16
    width: int = 4
    density: float = 0.5
    values: str = "f16"

    def __post_init__(self) -> None:
        if self.values not in ("f16", "f32"):
            raise FormatError(f"block_sparse: values={self.values} must be one of f16, f32")
        if not isinstance(self.density, int | float) or not 0 < self.density <= 1:
            raise FormatError(f"block_sparse: density={self.density} must be above 0 and at most 1")
        for what in ("height", "width"):
            if not isinstance(getattr(self, what), int) or getattr(self, what) < 1:
                raise FormatError(f"block_sparse: {what}={getattr(self, what)} must be a number from 1")

    @property
    def label(self) -> str:
        return f"blocks {self.height}x{self.width} {self.values}"

    def encode(self, weight: Tensor, moments: Tensor | None = None) -> dict[str, Tensor]:
        rows, columns = weight.shape
        for what, size, part in (("rows", rows, self.height), ("columns", columns, self.width)):
            if size % part:
                legal = ", ".join(str(n) for n in (64, 32, 16, 8, 4, 2, 1) if size % n == 0)
                raise FormatError(f"{self}: {size} {what} are no whole number of blocks of {part}; legal: {legal}")
        grid = weight.to(torch.float32).unflatten(1, (-1, self.width)).unflatten(0, (-1, self.height)).transpose(1, 2)
        norms = grid.square().sum((2, 3)).flatten()
        kept = norms.argsort(dim=0, descending=True, stable=True)[: max(1, round(self.density * len(norms)))]
        mask = torch.zeros(len(norms), dtype=torch.uint8)
        mask[kept] = 1
        mask = mask.reshape(rows // self.height, columns // self.width)
        return stored_values(self, grid[mask.bool()]) | {"mask": pack(mask, 1)}

    def express(self, graph: Graph, parts: Mapping[str, Tensor], shape: Shape, name: str) -> fx.Node:
        stored = {part: graph.add_weight(f"{name}.{part}", tensor) for part, tensor in sorted(parts.items())}
        mask = graph.call(graphc_ops.unpack.default, stored["mask"], 1, shape[1] // self.width)
        return graph.call(graphc_ops.expand_blocks.default, stored["values"], mask)

    @classmethod
    def recognize(cls, node: fx.Node) -> Stored | None:
        if node.target is not graphc_ops.expand_blocks.default:
            return None
        values, mask = arguments(node)
        if mask.target is not graphc_ops.unpack.default or arguments(mask)[1] != 1:
            return None
        parts = {"values": values, "mask": mask.args[0]}
        if any(part.op != "get_attr" for part in parts.values()):
            return None
        kept, height, width = values.meta["type"].shape
        if height == width == 1:  # single weights: the format `unstructured`
            return None
        rows, columns = mask.meta["type"].shape
        kind = "f16" if values.meta["type"].dtype == torch.float16 else "f32"
        return Stored(cls(height, width, kept / (rows * columns), kind), parts)
