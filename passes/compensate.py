"""Store weights in few bits, and make good what rounding loses by thin factors, wide where the outputs feel it most.

    w  ->  decode(encode(w)) + left @ right,   left @ right = svd_rank((w - decode(encode(w))) R) R^-1,  R R^T = G

G are the second moments of the layer's inputs (Zhang et al., "QERA", ICLR 2025). Ranks differ: a layer's sensitivity is
what the model's outputs lose by its rounding alone, and what a rank leaves of that is the energy that it leaves of the
whitened error. An integer program chooses the ranks of least loss in the bytes that `rank` would take everywhere (after
HCInfer, arXiv 2605.05819, which allocates ranks by sensitivity). `split_sums,split_low_rank` then let kernels read both
terms as stored.

before:
graph example((%x,), {}) {
  %w = weight "w" #0000000000000000 : f32[32, 64]
  %x = input : f32[2, 64]
  %y = aten.linear.default(%x, %w, None) : f32[2, 32]
  return %y
}
after:
graph example((%x,), {}) {
  %x = input : f32[2, 64]
  %w_0_codes = weight "w.0.codes" #0000000000000000 : u8[32, 32]
  %w_0_scale = weight "w.0.scale" #0000000000000000 : f16[32, 2]
  %w_0_zero_point = weight "w.0.zero_point" #0000000000000000 : u8[]
  %unpack_default = graphc.unpack.default(%w_0_codes, 4, 64) : u8[32, 64]
  %dequantize_groups_default = graphc.dequantize_groups.default(%unpack_default, %w_0_scale, %w_0_zero_point, 32) : f32[32, 64]
  %w_1_left_codes = weight "w.1.left.codes" #0000000000000000 : i8[32, 8]
  %w_1_left_scale = weight "w.1.left.scale" #0000000000000000 : f16[32, 1]
  %dequantize_groups_default_1 = graphc.dequantize_groups.default(%w_1_left_codes, %w_1_left_scale, None, 8) : f32[32, 8]
  %w_1_right_codes = weight "w.1.right.codes" #0000000000000000 : i8[8, 64]
  %w_1_right_scale = weight "w.1.right.scale" #0000000000000000 : f16[8, 1]
  %dequantize_groups_default_2 = graphc.dequantize_groups.default(%w_1_right_codes, %w_1_right_scale, None, 64) : f32[8, 64]
  %mm_default = aten.mm.default(%dequantize_groups_default_1, %dequantize_groups_default_2) : f32[32, 64]
  %add_tensor = aten.add.Tensor(%dequantize_groups_default, %mm_default) : f32[32, 64]
  %y = aten.linear.default(%x, %add_tensor, None) : f32[2, 32]
  return %y
}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from graphc.encoding.compensation import square_root
from graphc.errors import PassError
from graphc.formats.low_rank import DAMPING
from graphc.graph import Graph
from graphc.moments import second_moments
from graphc.passes.compress import takes, weight_name
from graphc.pipeline import Pass, PassContext

if TYPE_CHECKING:
    from graphc.assignment import Option

_QUARTERS = (0, 1, 2, 3, 4, 6, 8, 12, 16)  # of the mean rank: what is chosen from
_MOST = 1e9  # stands for a loss that is not finite


@dataclass(frozen=True)
class Compensate(Pass):
    """Layers whose path matches `layers` and none of `exclude` (shell patterns; no pattern: all). Those that the format
    cannot take stay as they are. CalibrationError without calibration data.

    format: what the thin factors, in int8, are added to. rank: the mean, counted in bytes. sensitivity: of
    graphc.analysis; none: all layers have the same rank.
    """

    fidelity = "lossy"
    format: str = "linear(bits=4,group=32)"
    rank: int = 8
    sensitivity: Literal["kl", "noise", "fisher", "taylor", "none"] = "kl"
    layers: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        # Imported late: analyses are made of passes.
        from graphc.analysis import SENSITIVITIES
        from graphc.analysis.candidates import Candidates, candidates
        from graphc.assignment import Choice
        from graphc.assignment.integer_program import integer_program

        if self.rank < 1:
            raise PassError(f"compensate: rank={self.rank} must be a number from 1")
        found = candidates(graph, [self.format], ctx)
        groups = [item for item in found.groups if (item.name, self.format) in found and self._takes(item.layers)]
        if not groups:
            return graph
        names = {item.name for item in groups}
        found = Candidates({key: found[key] for key in found if key[0] in names}, groups, found.formats)
        losses = dict.fromkeys(found, 1.0)
        if self.sensitivity != "none":
            losses = SENSITIVITIES[self.sensitivity](graph, found, ctx)
        moments = _moments(graph, {name for item in groups for name in item.weights}, ctx)
        choices, size = [], 0
        for item in groups:
            rounded = found[item.name, self.format]
            errors = [graph.weights[name] - weight for name, weight in rounded.weights.items()]
            lost = min(losses[item.name, self.format], _MOST)
            options = self._options(errors, [moments.get(name) for name in rounded.weights], rounded.bytes, lost)
            even = max(rank for rank in options if rank <= self.rank)
            size += options[even].bytes
            choices.append(Choice(item, (options[even],) if self.sensitivity == "none" else tuple(options.values())))
        result = graph
        for applied in integer_program(choices, size=size).passes:
            result = applied.run(result, ctx)
        return result

    def _takes(self, paths: Sequence[str]) -> bool:
        wanted = not self.layers or any(fnmatch(path, pattern) for path in paths for pattern in self.layers)
        return wanted and not any(fnmatch(path, pattern) for path in paths for pattern in self.exclude)

    def _options(
        self, errors: Sequence[Tensor], moments: Sequence[Tensor | None], size: int, lost: float
    ) -> dict[int, Option]:
        """By rank; `lost` without compensation."""
        from graphc.assignment import Option

        shapes = [error.flatten(1).shape for error in errors]
        energies = [_energies(error.flatten(1), own) for error, own in zip(errors, moments, strict=True)]
        total = max(sum(float(energy.sum()) for energy in energies), 1e-30)
        result = {}
        for rank in sorted({self.rank * quarter // 4 for quarter in _QUARTERS}):
            if rank and any(rank * (rows + columns) >= rows * columns for rows, columns in shapes):
                break
            more = sum(rank * (rows + columns) + 2 * (rows + rank) for rows, columns in shapes) if rank else 0
            left = sum(float(energy[rank:].sum()) for energy in energies) / total
            text = f"{self.format} + low_rank(rank={rank},factors=int8)" if rank else self.format
            result[rank] = Option(text, size + more, lost * left, data=True)
        return result


def _moments(graph: Graph, names: set[str], ctx: PassContext) -> Mapping[str, Tensor]:
    """By weight, of a layer that reads it."""
    layers = [node for node in graph.calls if takes(graph, node) and weight_name(node) in names]
    return {weight_name(layer): found for layer, found in second_moments(graph, layers, ctx).items()}


def _energies(error: Tensor, moments: Tensor | None) -> Tensor:
    """Squared singular values of the error, whitened where there are moments."""
    wide = error.to(torch.float64)
    root = None if moments is None else square_root(moments, DAMPING)
    energies: Tensor = torch.linalg.svdvals(wide if root is None else wide @ root).square()
    return energies
