"""A pass of one's own: a frozen dataclass whose fields are its options, from Graph to Graph."""

from dataclasses import dataclass

import torch
from torch import nn

import graphc


@dataclass(frozen=True)
class ZeroSmall(graphc.Pass):
    """Set small weights to nought, so that the file compresses better."""

    threshold: float = 0.01
    fidelity = "lossy"

    def run(self, graph: graphc.Graph, ctx: graphc.PassContext) -> graphc.Graph:
        result = graph.clone()
        for name, weight in graph.weights.items():
            if weight.is_floating_point():
                result.weights[name] = torch.where(weight.abs() < self.threshold, 0.0, weight)
        return result


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
x = torch.randn(1, 64)

# By object, between graphc's own passes, which are named by spec.
pipeline = graphc.Pipeline([*graphc.Pipeline("canonicalize,fold_constants").passes, ZeroSmall(threshold=0.05)])
print(f"pipeline: {pipeline}")

graph = pipeline.run(graphc.trace(model, (x,)))
zeros = sum(int((weight == 0).sum()) for weight in graph.weights.values())
total = sum(weight.numel() for weight in graph.weights.values())
print(f"{zeros} of {total} weights are nought")

# An installed package makes its passes known by name, so that specs and the command line find them too:
#   [project.entry-points."graphc.passes"]
#   zero_small = "my_package.zero_small:ZeroSmall"
# and then graphc.Pipeline("canonicalize,zero_small{threshold=0.05}").
artifact = graphc.compile(model, example_inputs=(x,), pipeline=pipeline)
print(f"the artifact remembers: {artifact.manifest['pipeline']}")
