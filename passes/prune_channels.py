"""Remove the channels that matter least, and all that hangs on them: the graph becomes narrower.

Channels that are coupled, such as those of all layers that add into one residual stream, go together (see
graphc.channels). Blocks of `multiple` channels go one after the other, first the one that loses least for each
multiply-accumulate that it saves, until the graph costs no more than asked for. What a block loses is its importance,
over the share of its group's importance that is left: a group that has lost much has less to lose.

    magnitude   sum over the layers that a channel belongs to of |w_c|^2 / sum_c |w_c|^2
    taylor      (1/N) sum_n |sum_j w_cj dL_n/dw_cj|, summed over the layers (OFA-Diffusion Compression, arXiv:2604.12668):
                per sample n of the calibration data, the absolute value outside the sum over a channel's weights. L_n
                is the cross entropy against the network's own decision, for calibration data has no labels

prune_channels{macs=60,multiple=4}
tolerance = 10
before:
graph example((%x,), {}) {
  %v = weight "v" #0000000000000000 : f32[8, 4]
  %w = weight "w" #0000000000000000 : f32[3, 8]
  %x = input : f32[2, 4]
  %a = aten.linear.default(%x, %v, None) : f32[2, 8]
  %b = aten.relu.default(%a) : f32[2, 8]
  %y = aten.linear.default(%b, %w, None) : f32[2, 3]
  return %y
}
after:
graph example((%x,), {}) {
  %v = weight "v" #0000000000000000 : f32[4, 4]
  %w = weight "w" #0000000000000000 : f32[3, 4]
  %x = input : f32[2, 4]
  %a = aten.linear.default(%x, %v, None) : f32[2, 4]
  %b = aten.relu.default(%a) : f32[2, 4]
  %y = aten.linear.default(%b, %w, None) : f32[2, 3]
  return %y
}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from graphc.channel_importance import magnitude, taylor
from graphc.channels import LAYERS, Coupling, couple
from graphc.errors import PassError
from graphc.graph import Graph
from graphc.narrowing import RemainingMacs, narrow
from graphc.pipeline import Pass, PassContext


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Narrow the graph to `share` of its multiply-accumulates, or to `macs` of them at most (0: no such bound).

    importance: how much a channel matters. minimum: the share of each group of channels that stays. multiple: what the
    numbers of channels are rounded up to; a group that has no more goes by quarters, or by fours. exclude: layers (shell patterns) that keep their channels. By default
    channels alone go whose weights are all nought. `share` is of the graph at hand: a second run narrows it further.
    Raises PassError where the bound cannot be met, with the least that can.
    """

    fidelity = "lossy"
    share: float = 1.0
    macs: int = 0
    importance: Literal["magnitude", "taylor"] = "magnitude"
    minimum: float = 0.25
    multiple: int = 8
    exclude: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: PassContext) -> Graph:
        if not (0 < self.share <= 1 and 0 <= self.minimum <= 1 and self.multiple >= 1 and self.macs >= 0):
            legal = "0 < share <= 1, macs >= 0, 0 <= minimum <= 1, multiple >= 1"
            raise PassError(f"'{self}' has an option out of range; legal: {legal}")
        coupling = couple(graph)
        importance = taylor(graph, coupling, ctx) if self.importance == "taylor" else magnitude(graph, coupling)
        gone = self._choose(coupling, importance, RemainingMacs(graph, coupling), self._excluded(graph, coupling))
        return narrow(graph, coupling, gone) if gone else graph

    def _excluded(self, graph: Graph, coupling: Coupling) -> set[int]:
        """The units of the layers that keep their channels."""
        kept: set[int] = set()
        for node in graph.calls:
            if node.target in LAYERS and any(fnmatch(node.meta["path"], pattern) for pattern in self.exclude):
                names = [node.name, *(used.name for used in node.all_input_nodes)]
                kept.update(unit for name in names if name in coupling.values for unit in coupling.values[name].units)
        return kept

    def _choose(self, coupling: Coupling, importance: Tensor, remaining: RemainingMacs, excluded: set[int]) -> set[int]:
        """The units to remove: the block of least importance for each multiply-accumulate saved, again and again; then
        what the bound has room for comes back, the last first."""
        order = [sorted(group, key=lambda unit: (float(importance[unit]), unit)) for group in coupling.groups]
        # The importance of a group's n most important channels, for each n.
        tail = [[0.0, *accumulate(float(importance[unit]) for unit in reversed(group))] for group in order]
        sizes = torch.tensor([len(group) for group in order], dtype=torch.float64)
        open_groups = [place for place, group in enumerate(order) if excluded.isdisjoint(group)]
        steps = [
            self.multiple if len(group) > self.multiple else min(self.multiple, max(4, len(group) // 4))
            for group in order
        ]
        floors = [
            math.ceil(max(1, self.minimum * len(group)) / step) * step for group, step in zip(order, steps, strict=True)
        ]
        left = [len(group) for group in order]
        cost = float(remaining(torch.ones(len(order), dtype=torch.float64)))
        target = min(cost * self.share, self.macs or cost)
        taken: list[tuple[int, int, float]] = []
        while True:
            after = {place: (left[place] - 1) // steps[place] * steps[place] for place in open_groups}
            after = {place: count for place, count in after.items() if count >= floors[place]}
            trials = torch.tensor([[*left[:place], count, *left[place + 1 :]] for place, count in after.items()])
            costs = remaining(trials / sizes).tolist() if after else []
            blocks = []
            for (place, count), new in zip(after.items(), costs, strict=True):
                lost = tail[place][left[place]] - tail[place][count]
                if new < cost:
                    scarcity = tail[place][-1] / (tail[place][left[place]] or 1)
                    blocks.append((lost * scarcity / (cost - new), place, count, new))
            if not blocks or (cost <= target and min(blocks)[0] > 0):
                break
            loss, place, count, cost = min(blocks)
            taken.append((place, left[place], loss))
            left[place] = count
        if cost > target:
            raise PassError(
                f"'{self}' asks for {target:,.0f} multiply-accumulates; the least that pruning can give is {cost:,.0f}: "
                "lower minimum or multiple, or exclude fewer layers"
            )
        closed: set[int] = set()  # groups of which a later block stays away: blocks come back in turn
        for place, count, loss in reversed(taken):
            trial = torch.tensor([*left[:place], count, *left[place + 1 :]], dtype=torch.float64)
            if loss > 0 and place not in closed and float(remaining(trial / sizes)) <= target:
                left[place] = count
            else:
                closed.add(place)
        return {unit for group, count in zip(order, left, strict=True) for unit in group[: len(group) - count]}
