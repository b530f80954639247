"""Each item in each format: the weights that it would have, and what they take.

A candidate is made by the very pass that will compress the layer, so that what is judged is what will be stored.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from graphc.analysis.items import Item, items
from graphc.errors import FormatError
from graphc.graph import Graph, concrete
from graphc.parallel import spread
from graphc.passes.compress import READERS, Compress, Unfit, takes, weight_name
from graphc.passes.separate_convolutions import SeparateConvolutions
from graphc.pipeline import Pass, PassContext
from graphc.target import Target

Key = tuple[str, str]  # an item's name, a format's text

FLOAT = "f32"  # the layer stays as it is
SEPARABLE = "separable"  # a convolution becomes a depthwise and a pointwise one, in f32 (DSConv)

# What competes for a layer where the user names nothing; a layer that a format cannot take lacks that candidate.
FORMATS: tuple[str, ...] = (
    "linear",
    *(f"linear(bits={bits}{group},range=mse,rounding=gptq)" for bits in (4, 3, 2) for group in (",group=16", "")),
    "linear(bits=4,group=32,range=mse,rounding=gptq)",
    *(f"vector(d=1,codewords={codewords})" for codewords in (16, 8, 4)),
    *(f"vector(d=2,codewords={codewords})" for codewords in (256, 64, 32, 16, 8)),
    *(f"vector(d=3,codewords={codewords})" for codewords in (128, 64)),
    *(f"vector(d=4,codewords={codewords})" for codewords in (256, 128, 64, 32, 16)),
    *(f"vector(d=8,codewords={codewords})" for codewords in (256, 64)),
    *(f"vector(d=9,codewords={codewords})" for codewords in (256, 64)),
    "sparse",
    "sparse(values=int8)",
    "block_sparse(height=8,width=1,density=0.5)",
    "low_rank(rank=8)",
    "low_rank(rank=32)",
    SEPARABLE,
)


@dataclass(frozen=True)
class Candidate:
    """Bytes of all stored parts, and the f32 weights that they decode to, by name (in the layers' own shapes)."""

    bytes: int
    weights: Mapping[str, Tensor]


class Candidates(Mapping[Key, Candidate]):
    """Candidates by item and format; every item has the candidate FLOAT. `groups`: all items; `formats`: those that
    were asked for and the target takes; `data`: whether they were encoded by the moments of the layers' inputs.
    """

    def __init__(
        self, found: Mapping[Key, Candidate], groups: Sequence[Item], formats: Sequence[str], data: bool = False
    ) -> None:
        self._found = dict(found)
        self.groups = tuple(groups)
        self.formats = tuple(formats)
        self.data = data

    def __getitem__(self, key: Key) -> Candidate:
        return self._found[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    @property
    def changed(self) -> list[Key]:
        """All keys but FLOAT's."""
        return [key for key in self._found if key[1] != FLOAT]

    def item(self, name: str) -> Item:
        return next(item for item in self.groups if item.name == name)


def candidates(graph: Graph, formats: Sequence[str], ctx: PassContext) -> Candidates:
    """Compress all items in all formats that the target takes: one job for each format.

    With calibration data what is encoded is what the layers' outputs lose least by (`compress{data=true}`).

    Raises FormatError for a text that names no format, or where none is left.
    """
    legal = [text for text in dict.fromkeys(formats) if text == SEPARABLE or ctx.target.takes(text)]
    if not legal:
        raise FormatError(f"{ctx.target.name} takes none of the formats {', '.join(formats)}")
    wanted = items(graph)
    found: dict[Key, Candidate] = {}
    for item in wanted:
        weights = {name: graph.weights[name] for name in item.weights}
        found[item.name, FLOAT] = Candidate(sum(weight.nbytes for weight in weights.values()), weights)
    layers = patterns([layer for item in wanted for layer in item.layers])
    moments = Compress(layers=layers).moments(graph, ctx) if ctx.calibration and wanted else {}
    jobs = [(graph, text, wanted, moments, ctx.target, ctx.seed) for text in legal]
    for made in spread(ctx, "compressing candidates", _compressed, jobs):
        found.update(made)
    return Candidates(found, wanted, legal, bool(moments))


def compressing(text: str, layers: Sequence[str] = (), data: bool = False, unfit: Unfit = "error") -> Pass:
    """The pass that brings layers, all where none is named, into a format."""
    if text == SEPARABLE:
        return SeparateConvolutions(error=math.inf, layers=patterns(layers))
    return Compress(text, patterns(layers), unfit=unfit, data=data)


def patterns(layers: Sequence[str]) -> tuple[str, ...]:
    """Layers as the shell patterns that match them alone."""
    return tuple(glob.escape(layer) for layer in layers)


def _compressed(
    graph: Graph,
    text: str,
    wanted: Sequence[Item],
    moments: Mapping[str, Tensor],
    target: Target,
    seed: int,
) -> dict[Key, Candidate]:
    if not wanted:
        return {}
    compress = compressing(text, [layer for item in wanted for layer in item.layers], unfit="keep")
    with torch.no_grad():
        if not isinstance(compress, Compress):
            return _separated(compress.run(graph, PassContext(target, seed=seed)), graph, wanted)
        compressed = compress.encoded(graph, moments, PassContext(target, seed=seed))
    sources = {node.name: node for node in compressed}
    expressions = {}
    for node in graph.calls:
        if takes(graph, node):
            expressions[weight_name(node)] = sources[node.name].args[READERS[node.target]]
    found = {}
    for item in wanted:
        made = {name: expressions[name] for name in item.weights}
        if any(isinstance(node, fx.Node) and node.op == "get_attr" for node in made.values()):
            continue  # a weight does not fit the format
        parts: dict[str, Tensor] = {}
        weights = {name: _decoded(compressed, node, parts) for name, node in made.items()}
        found[item.name, text] = Candidate(sum(part.nbytes for part in parts.values()), weights)
    return found


def _separated(separated: Graph, graph: Graph, wanted: Sequence[Item]) -> dict[Key, Candidate]:
    """The items all of whose weights are a depthwise and a pointwise one, as the dense weights that they amount to."""
    found = {}
    for item in wanted:
        parts = {
            name: [separated.weights[f"{name}.{part}"] for part in ("depthwise", "pointwise")]
            for name in item.weights
            if f"{name}.depthwise" in separated.weights
        }
        if len(parts) < len(item.weights):
            continue
        weights = {name: (mix.flatten(2) * taps.flatten(2).movedim(1, 0)).reshape(graph.weights[name].shape)
                   for name, (taps, mix) in parts.items()}  # fmt: skip
        size = sum(part.nbytes for pair in parts.values() for part in pair)
        found[item.name, SEPARABLE] = Candidate(size, weights)
    return found


def _decoded(graph: Graph, node: object, parts: dict[str, Tensor]) -> Tensor:
    """The value of an expression over stored tensors, which are added to `parts`."""

    def value(used: fx.Node) -> Tensor:
        if used.op == "get_attr":
            return parts.setdefault(str(used.target), graph.weights[str(used.target)])
        args, kwargs = concrete((used.args, dict(used.kwargs)), value, {})
        result: Tensor = used.target(*args, **kwargs)  # type: ignore[operator]
        return result

    with torch.no_grad():
        return value(node)  # type: ignore[arg-type]
