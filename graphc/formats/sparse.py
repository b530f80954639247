"""2:4 sparsity: of every four neighbours in a row the two that matter most are kept, with their places.

Half of the values, and two bits for each that say where among its four it lies (Mishra et al., "Accelerating Sparse
Deep Neural Networks", 2021). Those of largest magnitude are kept, or, with the moments of the layer's inputs, those
that the output feels most (encoding.selection).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphc.encoding.selection import importance, largest, pruned
from graphc.errors import FormatError
from graphc.formats import Format, Shape, Stored
from graphc.graph import Graph, arguments
from graphc.operators.weights import pack

graphc_ops = torch.ops.graphc
VALUES = {"f32": torch.float32, "f16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True)
class Sparse(Format):
    """Parts: values ([rows, columns / 2], f16, f32 or int8), positions (uint8 [rows, ceil(columns / 8)]: 2 bits each)
    and, for int8 values, scale (f32 [rows, 1]).

    update: change the values that are kept so that they make up for the others (SparseGPT); needs moments.
    """

    values: str = "f16"
    update: bool = False

    def __post_init__(self) -> None:
        if self.values not in VALUES:
            raise FormatError(f"sparse: values={self.values} must be one of {', '.join(VALUES)}")

    @property
    def label(self) -> str:
        return f"2:4 {self.values}"

    def encode(self, weight: Tensor, moments: Tensor | None = None) -> dict[str, Tensor]:
        if weight.shape[1] % 4:
            raise FormatError(f"{self}: rows of {weight.shape[1]} are no whole number of fours")
        if not weight.isfinite().all():
            raise FormatError(f"{self}: the weight is NaN or infinite")
        w = weight.to(torch.float32)
        if self.update:
            w, mask = pruned(w, needed(self, moments), _two_of_four, 4)
        else:
            mask = _two_of_four(importance(w, moments))
        kept = mask.unflatten(1, (-1, 4)).nonzero()[:, 2].reshape(len(w), -1, 2)
        values = w.unflatten(1, (-1, 4)).gather(-1, kept).flatten(1)
        return stored_values(self, values) | {"positions": pack(kept.to(torch.uint8).flatten(1), 2)}

    def express(self, graph: Graph, parts: Mapping[str, Tensor], shape: Shape, name: str) -> fx.Node:
        stored = {part: graph.add_weight(f"{name}.{part}", tensor) for part, tensor in sorted(parts.items())}
        positions = graph.call(graphc_ops.unpack.default, stored["positions"], 2, shape[1] // 2)
        values = stored["values"]
        if "scale" in stored:
            values = graph.call(graphc_ops.dequantize_groups.default, values, stored["scale"], None, shape[1] // 2)
        return graph.call(graphc_ops.expand_2_4.default, values, positions)

    @classmethod
    def recognize(cls, node: fx.Node) -> Stored | None:
        if node.target is not graphc_ops.expand_2_4.default:
            return None
        values, positions = arguments(node)
        if positions.target is not graphc_ops.unpack.default or arguments(positions)[1] != 2:
            return None
        parts = {"values": values, "positions": positions.args[0]}
        if values.target is graphc_ops.dequantize_groups.default:
            q, scale, zero, group = arguments(values)
            rows, columns = values.meta["type"].shape
            if zero is not None or group != columns or scale.meta["type"].shape != (rows, 1):
                return None
            parts |= {"values": q, "scale": scale}
        kind = next((name for name, dtype in VALUES.items() if parts["values"].meta["type"].dtype == dtype), None)
        if kind is None or any(part.op != "get_attr" for part in parts.values()):
            return None
        return Stored(cls(kind), parts)


def _two_of_four(scores: Tensor) -> Tensor:
    return largest(scores.unflatten(1, (-1, 4)), 2).flatten(1)


def needed(chosen: Format, moments: Tensor | None) -> Tensor:
    """The moments that an option needs. Raises FormatError where there are none."""
    if moments is None:
        raise FormatError(f"{chosen} needs the moments of the layer's inputs: compress{{data=true}}")
    return moments


def stored_values(chosen: Format, values: Tensor) -> dict[str, Tensor]:
    """The kept values of rows [rows, ...] in the type that the format's option `values` names, with the scale of each
    row for int8. Raises FormatError for what does not fit."""
    kind: str = chosen.values  # type: ignore[attr-defined]
    if not values.isfinite().all():
        raise FormatError(f"{chosen}: the weight is NaN or infinite")
    if kind == "int8":
        scale = values.abs().flatten(1).amax(1) / 127
        scale = torch.where(scale > 0, scale, 1.0)
        q = (values / scale.reshape(-1, *[1] * (values.dim() - 1))).round().to(torch.int8)
        return {"values": q, "scale": scale.unsqueeze(1)}
    stored = values.to(VALUES[kind])
    if not stored.isfinite().all():
        raise FormatError(f"{chosen}: values up to {float(values.abs().max()):.3g} do not fit f16; use values=f32")
    return {"values": stored}
