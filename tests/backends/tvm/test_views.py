"""Operators that move elements, against torch."""

import pytest
import torch
from torch import nn

from graphc.graph import Graph
from graphc.structure import Structure
from graphc.tensor_type import TensorType

aten = torch.ops.aten
torch.manual_seed(0)

X = torch.randn(2, 6, 5, 4)
FLAT = torch.randn(24)
TABLE = nn.Parameter(torch.randn(11, 19))
IDS = torch.randint(0, 11, (3, 5))

CASES = {
    "view": (aten.view.default, X, [4, 15, 4]),
    "reshape of all": (aten.reshape.default, X, [-1]),
    "view with ones": (aten.view.default, X, [2, 1, 6, 20, 1]),
    "permute": (aten.permute.default, X, [0, 2, 3, 1]),
    "transpose": (aten.transpose.int, X, 1, -1),
    "t": (aten.t.default, torch.randn(7, 3)),
    "expand": (aten.expand.default, torch.randn(3, 1, 4), [2, 3, 5, -1]),
    "unsqueeze": (aten.unsqueeze.default, X, -2),
    "squeeze": (aten.squeeze.dims, torch.randn(2, 1, 3, 1), [1, 3]),
    "slice": (aten.slice.Tensor, X, 1, 1, 5),
    "slice with step": (aten.slice.Tensor, X, 2, 0, 100, 3),
    "slice from the end": (aten.slice.Tensor, X, 3, -3, -1),
    "empty start": (aten.slice.Tensor, X, 0, None, 1),
    "select": (aten.select.int, X, 1, -1),
    "split": ((aten.split.Tensor, 1), X, 4, 1),
    "split sizes": ((aten.split_with_sizes.default, 2), X, [1, 2, 3], 1),
    "unbind": ((aten.unbind.int, 3), X, 2),
    "chunk": ((aten.chunk.default, 1), X, 3, 1),
    "cat": (aten.cat.default, [X, X[:, :1], X[:, 2:5]], 1),
    "cat in front": (aten.cat.default, [torch.randn(3), torch.randn(1), torch.randn(17)]),
    "cat types": (aten.cat.default, [torch.randn(3), torch.arange(4)]),
    "cat int8": (aten.cat.default, [torch.ones(1, 2, 3, dtype=torch.int8), torch.zeros(1, 2, 5, dtype=torch.int8)], 2),
    "stack": (aten.stack.default, [X, X + 1, X * 2], 2),
    "stack in front": (aten.stack.default, [FLAT, FLAT + 1]),
    "pad": (aten.constant_pad_nd.default, X, [1, 2, 0, 3], 0.5),
    "pad negative": (aten.constant_pad_nd.default, X, [-1, 0, 2, -2]),
    "pad channels": (aten.constant_pad_nd.default, X, [0, 0, 0, 0, 3, 1], -1.0),
    "flip": (aten.flip.default, X, [1, 3]),
    "roll": (aten.roll.default, X, [1, -2], [2, 3]),
    "roll flat": (aten.roll.default, X, [7]),
    "repeat": (aten.repeat.default, torch.randn(3, 1, 4), [2, 1, 2, 3]),
    "repeat_interleave": (aten.repeat_interleave.self_int, X, 2, 1),
    "repeat_interleave flat": (aten.repeat_interleave.self_int, torch.randn(2, 3), 3),
    "pixel_shuffle": (aten.pixel_shuffle.default, torch.randn(2, 12, 3, 5), 2),
    "as_strided": (aten.as_strided.default, FLAT, [3, 4], [2, 1], 5),
    "as_strided of image": (aten.as_strided.default, X, [3, 4], [7, 3]),
    "slice_scatter": (aten.slice_scatter.default, X, torch.randn(2, 2, 5, 4), 1, 1, 5, 2),
    "clone": (aten.clone.default, X),
    "copy": (aten.copy.default, torch.zeros(4, 3), torch.arange(3)),
    "full": (aten.full.default, [2, 3], 1.5),
    "arange": (aten.arange.start_step, 3, 20, 4),
    "ones_like": (aten.ones_like.default, X),
    "scalar_tensor": (aten.scalar_tensor.default, 7.0),
    "tril": (aten.tril.default, torch.randn(2, 5, 7), 1),
    "triu": (aten.triu.default, torch.randn(5, 5), -1),
    "embedding": (aten.embedding.default, TABLE, IDS),
    "embedding int32": (aten.embedding.default, TABLE, IDS.to(torch.int32)),
    "index_select": (aten.index_select.default, X, 1, torch.tensor([5, 0, 0, 3])),
    "gather": (aten.gather.default, X, 2, torch.randint(0, 5, (2, 6, 3, 4))),
    "index": (aten.index.Tensor, X, [None, torch.tensor([[1, -1], [0, 3]])]),
    "index two": (aten.index.Tensor, X, [torch.tensor([1, 0, 1]), torch.tensor([5, -6, 2])]),
    "index apart": (aten.index.Tensor, X, [torch.tensor([1, 0, 1]), None, torch.tensor([4, 0, 2])]),
    "index broadcast": (aten.index.Tensor, X, [torch.tensor([[0], [1]]), torch.tensor([1, 2, 3])]),
    "nearest": (aten.upsample_nearest2d.vec, X, None, [2.0, 3.0]),
    "nearest to size": (aten.upsample_nearest2d.vec, X, [7, 9], None),
    "bilinear": (aten.upsample_bilinear2d.vec, X, None, False, [2.0, 2.0]),
    "bilinear to size": (aten.upsample_bilinear2d.vec, X, [7, 9], False, None),
    "bilinear corners": (aten.upsample_bilinear2d.vec, X, [9, 3], True, None),
    "input as it is": (aten.detach.default, X),
    "weight as it is": (aten.clone.default, TABLE),
}


@pytest.mark.parametrize("name", CASES)
def test_computes_what_torch_does(suite, name):
    suite.check(name)


def test_an_index_out_of_range_reads_inside_the_tensor(compiled):
    graph = Graph("lookup", Structure.of(((0,), {})), Structure.of(0))
    ids = graph.add_input("ids", TensorType((3,), torch.int64))
    table = graph.add_weight("table", TABLE.detach())
    graph.set_output([graph.call(aten.embedding.default, table, ids)])
    got = torch.as_tensor(compiled(graph).run(torch.tensor([-1, 10, 2**40])))
    torch.testing.assert_close(got, TABLE.detach()[[10, 10, 10]])
