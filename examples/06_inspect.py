"""Look inside: dump a graph as text, read it back, watch the passes, and see what one of them changed."""

import difflib

import torch
from torch import nn

import graphc


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 2, 3, bias=False)
        self.norm = nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.norm(self.convolution(x)))


torch.manual_seed(0)
graph = graphc.trace(Block(), (torch.zeros(1, 1, 4, 4),))

# What is printed can be read again, to the same text.
text = graphc.dump(graph)
print(text)
print("parsed and dumped again, the same text:", graphc.dump(graphc.parse(text, graph.weights)) == text)


# A watcher is called after every pass. A diff of two dumps shows what the pass did, and nothing else.
def show_changes(step, before, after):
    print(f"\n{step}: {len(before.calls)} -> {len(after.calls)} operators")
    if after is not before:
        old, new = graphc.dump(before).splitlines(), graphc.dump(after).splitlines()
        changes = (line for line in difflib.ndiff(old, new) if line.startswith(("- ", "+ ")))
        print("\n".join(changes))


graphc.Pipeline("canonicalize,fold_batchnorm,drop_unused,fuse_operators").run(graph, watch=[show_changes])
