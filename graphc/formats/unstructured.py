"""Unstructured sparsity: single weights are kept, with whatever says in fewer bytes where they lie.

    bitmap   a bit for each weight, kept or not
    gaps     for each weight that is kept, how many before it are not, in as few bits as pays; where a gap is longer
             than these hold, a nought is stored on the way (Han et al., "Deep Compression", ICLR 2016, section 2)

Kept are those of largest magnitude in the matrix; with the moments of the layer's inputs, in each row those that the
output feels most (encoding.selection).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphc.encoding.selection import importance, largest, pruned
from graphc.errors import FormatError
from graphc.formats import Format, Shape, Stored
from graphc.formats.sparse import needed, stored_values
from graphc.graph import Graph, arguments
from graphc.operators.weights import pack

graphc_ops = torch.ops.graphc


@dataclass(frozen=True)
class Unstructured(Format):
    """Parts: values (f16 or f32) [kept, 1, 1] with mask (uint8 [rows, ceil(columns / 8)]), or values [stored] with gaps
    (uint8 [ceil(stored * bits / 8)]) and bits below 8.

    density: the share that is kept. update: change the values that are kept so that they make up for the others
    (SparseGPT); needs moments.
    """

    density: float = 0.5
    values: str = "f16"
    update: bool = False

    def __post_init__(self) -> None:
        if self.values not in ("f16", "f32"):
            raise FormatError(f"unstructured: values={self.values} must be one of f16, f32")
        if not isinstance(self.density, int | float) or not 0 < self.density <= 1:
            raise FormatError(f"unstructured: density={self.density} must be above 0 and at most 1")

    @property
    def label(self) -> str:
        return f"sparse {self.density:.2g} {self.values}"

    def encode(self, weight: Tensor, moments: Tensor | None = None) -> dict[str, Tensor]:
        if not weight.isfinite().all():
            raise FormatError(f"{self}: the weight is NaN or infinite")
        w = weight.to(torch.float32)
        if self.update:
            w, mask = pruned(w, needed(self, moments), self._kept)
        elif moments is None:
            mask = self._kept(w.abs())
        else:
            mask = largest(importance(w, moments), self._count(w.shape[1]))
        return min((self._bitmap(w, mask), self._gaps(w, mask)), key=self.bytes)

    def _count(self, of: int) -> int:
        return max(1, round(self.density * of))

    def _kept(self, scores: Tensor) -> Tensor:
        return largest(scores.flatten(), self._count(scores.numel())).reshape(scores.shape)

    def _bitmap(self, w: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return stored_values(self, w[mask].reshape(-1, 1, 1)) | {"mask": pack(mask.to(torch.uint8), 1)}

    def _gaps(self, w: Tensor, mask: Tensor) -> dict[str, Tensor]:
        places = mask.flatten().nonzero().flatten()
        skipped = places.diff(prepend=torch.tensor([-1])) - 1
        size = 2 if self.values == "f16" else 4

        def cost(bits: int) -> int:
            return (len(places) + int((skipped >> bits).sum())) * (bits + 8 * size)

        bits = min(range(1, 9), key=cost)
        if len(places) + int((skipped >> bits).sum()) < 8:
            bits = 8  # so that `_bits` can tell from the bytes
        longer = skipped >> bits  # noughts on the way, each one after as many as a gap can hold
        ends = (longer + 1).cumsum(0) - 1
        gaps = torch.full((int(ends[-1]) + 1,), 2**bits - 1)
        gaps[ends] = skipped - (longer << bits)
        values = torch.zeros(len(gaps)).index_put((ends,), w.flatten()[places])
        return stored_values(self, values) | {"gaps": pack(gaps.to(torch.uint8), bits)}

    def express(self, graph: Graph, parts: Mapping[str, Tensor], shape: Shape, name: str) -> fx.Node:
        stored = {part: graph.add_weight(f"{name}.{part}", tensor) for part, tensor in sorted(parts.items())}
        if "mask" in parts:
            mask = graph.call(graphc_ops.unpack.default, stored["mask"], 1, shape[1])
            return graph.call(graphc_ops.expand_blocks.default, stored["values"], mask)
        count = len(parts["values"])
        bits = _bits(count, len(parts["gaps"]))
        gaps = graph.call(graphc_ops.unpack.default, stored["gaps"], bits, count)
        return graph.call(graphc_ops.expand_gaps.default, stored["values"], gaps, *shape)

    @classmethod
    def recognize(cls, node: fx.Node) -> Stored | None:
        if node.target not in (graphc_ops.expand_blocks.default, graphc_ops.expand_gaps.default):
            return None
        values, where = arguments(node)[:2]
        how = "gaps" if node.target is graphc_ops.expand_gaps.default else "mask"
        if where.target is not graphc_ops.unpack.default:
            return None
        parts = {"values": values, how: where.args[0]}
        kind = values.meta["type"]
        if any(part.op != "get_attr" for part in parts.values()) or list(kind.shape[1:]) not in ([], [1, 1]):
            return None
        rows, columns = node.meta["type"].shape
        density = round(kind.shape[0] / (rows * columns), 4)
        return Stored(cls(density, "f16" if kind.dtype == torch.float16 else "f32"), parts)


def _bits(count: int, stored: int) -> int:
    """Bits of each of `count` gaps that take `stored` bytes."""
    return min(8, stored * 8 // count)
