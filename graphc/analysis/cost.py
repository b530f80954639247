"""What each candidate costs on a target: multiply-accumulates, bytes, and the time that a roofline allows.

    time = max(MACs / peak, bytes moved / bandwidth)     (Williams, Waterman & Patterson, "Roofline", CACM 2009)

Bytes moved are the stored weight, what the layer reads and what it writes. The peak follows from the instruction set at
a nominal clock: times compare candidates, and are no forecast (`graphc.latency` measures).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import fx

from graphc import formats
from graphc.analysis.candidates import FLOAT, SEPARABLE, Candidates, Key
from graphc.cost import macs
from graphc.formats.low_rank import LowRank
from graphc.graph import Graph
from graphc.passes.compress import takes
from graphc.target import Target
from graphc.tensor_type import TensorType, evaluate, symbol

_CLOCK = 2.5e9  # cycles a second
_BANDWIDTH = 1e10  # bytes a second that one core reads


@dataclass(frozen=True)
class Roofline:
    """f32 multiply-accumulates and bytes a second; `of` gives one core's, at a nominal clock."""

    macs: float
    bytes: float

    @staticmethod
    def of(target: Target) -> Roofline:
        """Two fused multiply-adds a cycle of the widest vectors that the target has."""
        lanes = 16 if target.has("avx512f") else 8 if target.has("avx2", "fma") else 4
        return Roofline(_CLOCK * 2 * lanes, _BANDWIDTH)


@dataclass(frozen=True)
class Cost:
    """macs: multiply-accumulates, dynamic sizes at their minimum. bytes: of the stored weights. seconds: roofline."""

    macs: int
    bytes: int
    seconds: float


def costs(graph: Graph, found: Candidates, roofline: Roofline) -> dict[Key, Cost]:
    """The cost of every candidate; `roofline` is `Roofline.of(target)`, or what was measured.

    A linear layer's low-rank factors are multiplied one after the other (`split_low_rank`), where that is less work; a
    separable convolution is a depthwise and a pointwise one. Of an embedding's weight the rows that are looked up move.
    """
    nodes: dict[str, list[fx.Node]] = {}
    for node in graph.calls:
        nodes.setdefault(node.meta["path"], []).append(node)
    result = {}
    for (name, text), candidate in found.items():
        layers = [node for path in found.item(name).layers for node in nodes[path] if macs(graph, node)]
        work = sum(_macs(graph, node, text) for node in layers)
        moved = sum(_bytes(graph, node) + _bytes(graph, node.args[0]) for node in layers)
        if layers:
            moved += candidate.bytes
        else:
            looked_up = sum(
                _bytes(graph, node) for path in found.item(name).layers for node in nodes[path] if takes(graph, node)
            )
            moved += round(looked_up * (1 + candidate.bytes / found[name, FLOAT].bytes))
        result[name, text] = Cost(work, candidate.bytes, max(work / roofline.macs, moved / roofline.bytes))
    return result


def _macs(graph: Graph, node: fx.Node, text: str) -> int:
    full = macs(graph, node)
    weight = graph.weight(node.args[1])
    if text == SEPARABLE and weight is not None:
        outputs, _, *kernel = weight.shape
        return full // math.prod(kernel) + full // outputs  # pointwise, depthwise
    chosen = None if text in (FLOAT, SEPARABLE) else formats.parse(text)
    if not isinstance(chosen, LowRank) or weight is None or weight.dim() != 2:
        return full
    rows, columns = weight.shape
    return min(full, full * chosen.rank * (rows + columns) // (rows * columns))


def _bytes(graph: Graph, value: object) -> int:
    """Of an activation, dynamic sizes at their minimum."""
    kind: TensorType = value.meta["type"]  # type: ignore[attr-defined]
    sizes = {symbol(name): bounds.minimum for name, bounds in graph.symbols.items()}
    return kind.dtype.itemsize * int(math.prod(evaluate(size, sizes) for size in kind.shape))
