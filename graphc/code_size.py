"""How many bytes of code a kernel takes in each format, found by lowering one layer of the model on its own."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import fx

from graphc.analysis.candidates import FLOAT, compressing
from graphc.compiler import lower
from graphc.graph import Graph
from graphc.passes.compress import takes, weight_name
from graphc.pipeline import FINISH, PassContext, Pipeline
from graphc.progress import silent
from graphc.structure import Structure


class KernelSizes:
    """Bytes of a kernel by format.

    known: those that were measured. Layers of other shapes take other kernels of about that size.
    """

    def __init__(self, clean: Graph, ctx: PassContext) -> None:
        self._ctx = PassContext(ctx.target, seed=ctx.seed)
        self.known: dict[str, float] = {}
        self._clean = clean

    def measure(self, text: str) -> None:
        """Compress the layer, and compile it; one that does not fit the format takes what it does in f32."""
        passes = [] if text == FLOAT else [compressing(text, unfit="keep")]
        finished = Pipeline([*passes, *Pipeline(f"split_sums,split_low_rank,{FINISH}").passes])
        self.known[text] = max(self._code(finished.run(self._layer, self._ctx)) - self._least, 0)

    @cached_property
    def _layer(self) -> Graph:
        """Neither an odd one nor one that takes long to encode: that with the median number of weights."""
        layers = sorted(
            (node for node in self._clean.calls if takes(self._clean, node)),
            key=lambda node: self._clean.weights[weight_name(node)].numel(),
        )
        return alone(self._clean, layers[len(layers) // 2])

    @cached_property
    def _least(self) -> int:
        """Of a program of one simple operator: what runs the kernels."""
        graph = Graph("empty", Structure.of(((0,), {})), Structure.of(0))
        source = self._layer.placeholders[0]
        value = graph.add_input("x", source.meta["type"])
        graph.set_output([graph.call(torch.ops.aten.neg.default, value)])
        return self._code(graph)

    def _code(self, graph: Graph) -> int:
        return len(lower(graph, self._ctx.target, silent).code)


def alone(graph: Graph, layer: fx.Node) -> Graph:
    """A graph of one layer with its weights; what it reads beside them is its input."""
    inputs = [node for node in layer.all_input_nodes if node.op != "get_attr"]
    result = Graph(layer.name, Structure.of((tuple(range(len(inputs))), {})), Structure.of(0), symbols=graph.symbols)
    made = {node: result.add_input(node.name, node.meta["type"]) for node in inputs}
    for node in layer.all_input_nodes:
        if node.op == "get_attr":
            made[node] = result.add_weight(str(node.target), graph.weights[str(node.target)], node.meta["path"])
    args, kwargs = fx.map_arg((layer.args, layer.kwargs), made.__getitem__)
    call = result.call(layer.target, *args, name=layer.name, **kwargs)
    call.meta["path"] = layer.meta["path"]
    result.set_output([call])
    return result
