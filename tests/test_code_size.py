"""What kernels take, against the artifacts that they are part of."""

import torch
from torch import nn

import graphc
from graphc.analysis.candidates import FLOAT
from graphc.code_size import KernelSizes, alone
from graphc.graph import Graph
from graphc.pipeline import CLEAN, PassContext, Pipeline


def clean(model: nn.Module, x: torch.Tensor) -> Graph:
    return Pipeline(CLEAN).run(graphc.trace(model.eval(), (x,)))


def test_a_layer_alone_computes_what_it_does_in_the_graph():
    torch.manual_seed(0)
    graph = clean(nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 4, 1)), torch.randn(1, 3, 9, 9))
    second = [node for node in graph.calls if node.target is torch.ops.aten.convolution.default][1]
    seen = {}
    x = torch.randn(1, 3, 9, 9)
    graph.run_flat([x], lambda node, value: seen.setdefault(node, value))
    (result,) = alone(graph, second).run_flat([seen[second.args[0]]])
    assert torch.equal(result, seen[second])


def test_kernels_add_up_to_what_formats_add_to_an_artifact():
    """Three layers that other operators follow each: three kernels."""
    torch.manual_seed(0)
    x, formats = torch.randn(64, 64), ("linear", "linear(bits=3)", "linear(bits=4)")
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Sigmoid())
    sizes = KernelSizes(clean(model, x), PassContext())
    for text in (FLOAT, *formats):
        sizes.measure(text)
    assert sizes.known["linear(bits=3)"] > 1.5 * sizes.known["linear(bits=4)"] > sizes.known["linear"] > 1000
    code = {
        text: graphc.compile(model, "host", (x,), pipeline=f'{CLEAN},compress{{format="{text}"}},fuse_operators')
        for text in formats
    }
    for text in formats[1:]:
        grown = code[text].size.code - code["linear"].size.code
        assert abs(grown - 3 * (sizes.known[text] - sizes.known["linear"])) < 0.35 * grown
