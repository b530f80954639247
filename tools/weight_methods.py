"""The ways of storing linear layers that the perplexity program compares, by section, and what should beat what.

A format depends on the weight's shape: the groups of integers divide the rows, and what is compared at equal bytes has
a density or a rank that takes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import torch

from graphc.analysis.candidates import patterns
from graphc.graph import Graph
from graphc.passes.activation_aware_scaling import ActivationAwareScaling
from graphc.passes.compensate import Compensate
from graphc.passes.compress import Compress
from graphc.pipeline import Pass, PassContext, Pipeline

Shape = tuple[int, int]
GROUP = 32
ONCE = Pipeline("eliminate_common_subexpressions,drop_unused")  # a codebook that layers share is stored once


@dataclass(frozen=True)
class Layers:
    """The linear layers that are compressed. weights: their path and shape by the weight's name. others: bytes of all
    other weights."""

    weights: Mapping[str, tuple[str, Shape]]
    others: int

    @staticmethod
    def of(graph: Graph, pattern: str) -> Layers:
        """Those whose path matches."""
        weights, total = {}, sum(weight.nbytes for weight in graph.weights.values())
        for node in graph.calls:
            if node.target is torch.ops.aten.linear.default and fnmatch(node.meta["path"], pattern):
                weight = graph.weight(node.args[1])
                if weight is not None:
                    weights[str(node.args[1].target)] = (node.meta["path"], (weight.shape[0], weight.shape[1]))  # type: ignore[union-attr]
        return Layers(weights, total - 4 * sum(math.prod(shape) for _, shape in weights.values()))

    def bytes(self, graph: Graph) -> int:
        """What these layers' weights take in a graph that was made of this one."""
        return sum(weight.nbytes for weight in graph.weights.values()) - self.others

    def bits(self, graph: Graph) -> float:
        """Of each of their weights."""
        return 8 * self.bytes(graph) / sum(math.prod(shape) for _, shape in self.weights.values())

    @property
    def blocks(self) -> list[str]:
        """The first two parts of paths, such as "layers.3", in the graph's order."""
        return list(dict.fromkeys(".".join(path.split(".")[:2]) for path, _ in self.weights.values()))

    def by_format(self, text: Callable[[Shape], str], block: str = "") -> dict[str, tuple[str, ...]]:
        """Paths (of a block) as patterns, by the format of their shape."""
        found: dict[str, dict[str, None]] = {}
        inside = (item for item in self.weights.values() if block in ("", ".".join(item[0].split(".")[:2])))
        for path, shape in inside:
            found.setdefault(text(shape), {})[path] = None
        return {form: patterns(list(paths)) for form, paths in found.items()}


@dataclass(frozen=True)
class Method:
    """format: the text of a weight's format by its shape. data: encoded by the moments of the layers' inputs. scaled:
    the format that AWQ's scales are searched for, before; None: there are none. blocks: each block of layers is encoded
    by what it reads once those before are compressed, as GPTQ's authors do it."""

    name: str
    format: Callable[[Shape], str]
    data: bool = True
    scaled: Callable[[Shape], str] | None = None
    blocks: bool = False

    def run(self, graph: Graph, layers: Layers, ctx: PassContext) -> Graph:
        passes: list[Pass] = []
        if self.scaled is not None:
            passes += [ActivationAwareScaling(form, paths) for form, paths in layers.by_format(self.scaled).items()]
        for block in layers.blocks if self.blocks else [""]:
            found = layers.by_format(self.format, block)
            passes += [Compress(form, paths, data=self.data) for form, paths in found.items()]
        return Pipeline([*passes, *ONCE.passes]).run(graph, ctx)


@dataclass(frozen=True)
class Compensated:
    """Compensation with ranks by sensitivity, in the bytes that `rank` takes everywhere."""

    name: str
    base: Callable[[Shape], str]
    rank: int

    def run(self, graph: Graph, layers: Layers, ctx: PassContext) -> Graph:
        passes = [Compensate(form, self.rank, layers=paths) for form, paths in layers.by_format(self.base).items()]
        # Gradients are slow.
        few = replace(ctx, calibration=[[leaf[:2] for leaf in batch] for batch in ctx.calibration])
        return Pipeline(passes).run(graph, few)


def group(columns: int) -> int:
    """The smallest divisor from GROUP up."""
    return next(size for size in range(min(GROUP, columns), columns + 1) if columns % size == 0)


def integers(bits: int, options: str = "") -> Callable[[Shape], str]:
    return lambda shape: f"linear(bits={bits},group={group(shape[1])}{',' if options else ''}{options})"


def _longer(bits: int) -> list[Method]:
    title, best = f"{bits} bits, ", integers(bits, "rounding=gptq,range=mse,order=activation")
    return [
        Method(title + "GPTQ, clipped, act-order, by block", best, blocks=True),
        Method(title + "AdaRound", integers(bits, "rounding=adaround,range=mse")),
    ]


def _integers(bits: int) -> list[Method]:
    clipped, best = integers(bits, "range=mse"), integers(bits, "rounding=gptq,range=mse,order=activation")
    title = f"{bits} bits, "
    return [
        Method(title + "nearest", integers(bits), False),
        Method(title + "nearest, clipped", clipped),
        Method(title + "AWQ", integers(bits), False, scaled=integers(bits)),
        Method(title + "AWQ, clipped", clipped, scaled=clipped),
        Method(title + "GPTQ", integers(bits, "rounding=gptq")),
        Method(title + "GPTQ, clipped, act-order", best),
        Method(title + "AWQ + GPTQ", best, scaled=clipped),
        Method(title + "nearest, zero points", integers(bits, "symmetric=false"), False),
        Method(title + "HQQ, zero points", integers(bits, "rounding=hqq,symmetric=false"), False),
    ]


# One codebook for all layers: 2 bits a weight where 256 codewords stand for four, and 32 for the scale of a row.
_VECTORS = {
    "256 vectors": "vector(d=4,shared=true,scale=false{})",
    "128 vectors, row scales": "vector(d=4,codewords=128,shared=true{})",
    "256 vectors, row scales": "vector(d=4,shared=true{})",
}


def _vectors(name: str, text: str) -> list[Method]:
    title, updated = f"2 bits, {name}", text.format(",update=true")
    return [
        Method(title, lambda shape: text.format(""), False),
        Method(title + ", weighted", lambda shape: text.format("")),
        Method(title + ", GPTVQ", lambda shape: updated),
    ]


def _sparse(kept: Callable[[int, int], float], text: str) -> Callable[[Shape], str]:
    """`text` with the density at which what is kept and the mask take as many bytes as half of f16 leaves."""

    def format(shape: Shape) -> str:
        rows, columns = shape
        mask = rows * -(-columns // 8)
        count = int((rows * columns - mask - kept(rows, columns)) / (2 * rows))
        return text.format(density=count / columns)

    return format


def _thin(rank: int) -> Callable[[int, int], float]:
    return lambda rows, columns: rank * (rows + columns) + 2 * (rows + rank) if rank else 0


_SPARSE = [
    Method("half, magnitude", _sparse(_thin(0), "unstructured(density={density})"), False),
    Method("half, Wanda", _sparse(_thin(0), "unstructured(density={density})")),
    Method("half, SparseGPT", _sparse(_thin(0), "unstructured(density={density},update=true)")),
    *(
        Method(
            f"half, sparse + rank {rank}",
            _sparse(_thin(rank), f"low_rank(rank={rank},factors=int8) + unstructured(density={{density}}); rounds=20"),
        )
        for rank in (1, 2)
    ),
    Method(
        "half, SLaB",
        _sparse(
            lambda rows, columns: 4 + rows * -(-columns // 8) + _thin(1)(rows, columns),
            "low_rank(rank=1,factors=int8) * binary + unstructured(density={density}); rounds=20",
        ),
    ),
]


def _low_rank(share: float) -> list[Method]:
    def format(shape: Shape) -> str:
        return f"low_rank(rank={max(1, int(share * math.prod(shape) / sum(shape)))})"

    return [Method(f"rank for {share:.0%}, {name}", format, name == "whitened") for name in ("plain", "whitened")]


def _compensated(bits: int, rank: int = 4) -> list[Method | Compensated]:
    base, title = integers(bits), f"{bits} bits, compensation "

    def format(shape: Shape) -> str:
        return f"{base(shape)} + low_rank(rank={rank},factors=int8)"

    return [
        Method(title + "none", base, False),
        Method(title + "plain", format, False),
        Method(title + "whitened", format),
        Compensated(title + "whitened, ranks by sensitivity", base, rank),
    ]


SECTIONS: dict[str, list[Method | Compensated]] = {
    "integers": [method for bits in (4, 3, 2) for method in _integers(bits)],
    "longer": [method for bits in (4, 3, 2) for method in _longer(bits)],
    "vectors": [method for name, text in _VECTORS.items() for method in _vectors(name, text)],
    "sparse": list(_SPARSE),
    "low_rank": [method for share in (0.75, 0.5) for method in _low_rank(share)],
    "compensation": [method for bits in (3, 2) for method in _compensated(bits)],
}

# (lower perplexity, higher, whether it must take no more bytes too)
CHECKS = [
    *(
        (f"{bits} bits, {better}", f"{bits} bits, {worse}", True)
        for bits in (4, 3, 2)
        for better, worse in (
            ("GPTQ", "nearest"),
            ("HQQ, zero points", "nearest, zero points"),
            ("AWQ", "nearest"),
            ("AWQ, clipped", "nearest, clipped"),
            ("AWQ + GPTQ", "GPTQ, clipped, act-order"),
            ("AWQ + GPTQ", "AWQ, clipped"),
        )
    ),
    *(
        (f"2 bits, {name}{how}", f"2 bits, {other}", True)
        for name in list(_VECTORS)[:2]
        for how in ("", ", weighted", ", GPTVQ")
        for other in ("nearest", "nearest, clipped")
    ),
    *((f"2 bits, {name}, weighted", f"2 bits, {name}", True) for name in _VECTORS),
    *((f"2 bits, {name}, GPTVQ", f"2 bits, {name}, weighted", True) for name in _VECTORS),
    *((f"2 bits, {name}, GPTVQ", "2 bits, GPTQ, clipped, act-order", True) for name in _VECTORS),
    *(("half, SLaB", method.name, True) for method in _SPARSE[:-1]),
    *((f"rank for {share}, whitened", f"rank for {share}, plain", True) for share in ("75%", "50%")),
    *(
        (f"{bits} bits, compensation {better}", f"{bits} bits, compensation {worse}", worse != "none")
        for bits in (3, 2)
        for better, worse in (
            ("plain", "none"),
            ("whitened", "plain"),
            ("whitened, ranks by sensitivity", "whitened"),
        )
    ),
]
