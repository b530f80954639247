"""Matrix products, convolutions and attention in float32 against torch, on every instruction set."""

import math

import pytest
import torch
from torch import nn

from graphc.backends.tvm import lower
from graphc.graph import Graph
from graphc.structure import Structure
from graphc.target import Target
from graphc.tensor_type import TensorType

aten = torch.ops.aten
torch.manual_seed(0)
ATOL = 3e-5


def w(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / math.sqrt(math.prod(shape[1:])))


def conv(
    x, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), transposed=False, extra=(0, 0), groups=1
):
    listed = [list(stride), list(padding), list(dilation)]
    return (aten.convolution.default, x, weight, bias, *listed, transposed, list(extra), groups)


X = torch.randn(2, 6, 13, 11)
Q, K, V = torch.randn(2, 4, 19, 8), torch.randn(2, 4, 23, 8), torch.randn(2, 4, 23, 12)
KEEP = torch.rand(2, 1, 19, 23) < 0.6
KEEP[1, 0, 3] = False  # a query that may look nowhere
sdpa = aten.scaled_dot_product_attention.default

CASES = {
    "linear": (aten.linear.default, torch.randn(5, 33), w(70, 33), w(70)),
    "linear of one row": (aten.linear.default, torch.randn(1, 100), w(10, 100)),
    "linear of many dimensions": (aten.linear.default, torch.randn(2, 3, 17, 8), w(3, 8), w(3)),
    "linear of a vector": (aten.linear.default, torch.randn(40), w(3, 40), w(3)),
    "linear by an input": (aten.linear.default, torch.randn(9, 12), torch.randn(7, 12), torch.randn(7)),
    "linear large": (aten.linear.default, torch.randn(37, 300), w(1000, 300), w(1000)),
    "mm": (aten.mm.default, torch.randn(9, 12), torch.randn(12, 35)),
    "mm by a weight": (aten.mm.default, torch.randn(9, 12), w(12, 35)),
    "addmm": (aten.addmm.default, w(35), torch.randn(9, 12), w(12, 35)),
    "addmm scaled": (aten.addmm.default, torch.randn(9, 1), torch.randn(9, 12), w(12, 35), {"beta": 0.5, "alpha": 2}),
    "bmm": (aten.bmm.default, torch.randn(3, 9, 12), torch.randn(3, 12, 35)),
    "baddbmm": (aten.baddbmm.default, torch.randn(3, 1, 35), torch.randn(3, 9, 12), torch.randn(3, 12, 35)),
    "matmul of vectors": (aten.matmul.default, torch.randn(30), torch.randn(30)),
    "matmul with a vector": (aten.matmul.default, torch.randn(2, 9, 30), torch.randn(30)),
    "matmul broadcast": (aten.matmul.default, torch.randn(2, 1, 9, 30), torch.randn(4, 30, 5)),
    "matmul by a matrix": (aten.matmul.default, torch.randn(2, 4, 9, 30), w(30, 5)),
    "row by a matrix": (aten.matmul.default, torch.randn(2, 4, 1, 37), torch.randn(2, 4, 37, 70)),
    "row by whole vectors": (aten.matmul.default, torch.randn(2, 1, 64), torch.randn(2, 64, 128)),
    "row by a broadcast matrix": (aten.matmul.default, torch.randn(3, 2, 1, 37), torch.randn(2, 37, 5)),
    "row by a matrix of its own": (aten.bmm.default, torch.randn(3, 1, 12), torch.randn(3, 12, 35)),
    "conv": conv(X, w(9, 6, 3, 3), w(9), padding=(1, 1)),
    "conv 1x1": conv(X, w(40, 6, 1, 1), w(40)),
    "conv 1x1 with stride": conv(X, w(9, 6, 1, 1), None, (2, 3)),
    "conv uneven": conv(X, w(35, 6, 2, 5), w(35), (2, 1), (0, 2), (3, 1)),
    "conv dilated": conv(X, w(9, 6, 3, 3), None, (1, 2), (2, 4), (2, 4)),
    "conv in groups": conv(X, w(9, 2, 3, 3), w(9), (2, 2), (1, 1), groups=3),
    "conv of one channel": conv(X[:, :1], w(33, 1, 5, 5), w(33)),
    "conv wide": conv(torch.randn(1, 3, 9, 70), w(65, 3, 7, 7), w(65), (2, 2), (3, 3)),
    "conv of one pixel": conv(torch.randn(1, 80, 1, 1), w(10, 80, 1, 1)),
    "conv large kernel": conv(torch.randn(1, 8, 7, 7), w(16, 8, 7, 7), w(16)),
    "conv 1d": (aten.convolution.default, X[0], w(9, 13, 3), w(9), [2], [1], [1], False, [0], 1),
    "conv by an input": conv(X, torch.randn(5, 6, 3, 3)),
    "depthwise": conv(X, w(6, 1, 3, 3), w(6), (1, 1), (1, 1), groups=6),
    "depthwise wide": conv(torch.randn(1, 37, 9, 10), w(37, 1, 3, 3), None, (2, 2), (1, 1), groups=37),
    "depthwise dilated": conv(torch.randn(1, 16, 9, 10), w(16, 1, 5, 2), w(16), (1, 2), (4, 1), (2, 3), groups=16),
    "depthwise 1d": (aten.convolution.default, X[0], w(13, 1, 3), w(13), [1], [1], [1], False, [0], 13),
    "two filters a channel": conv(X, w(12, 1, 3, 3), w(12), groups=6),
    "transposed": conv(X, w(6, 9, 3, 3), w(9), (2, 2), (1, 1), transposed=True, extra=(1, 1)),
    "transposed in groups": conv(X, w(6, 4, 4, 2), w(8), (3, 2), (0, 1), (1, 2), True, (0, 0), 2),
    "attention": (sdpa, Q, K, V),
    "attention causal": (sdpa, Q, Q, Q, None, 0.0, True),
    "attention with a mask": (sdpa, Q, K, V, KEEP),
    "attention with a bias": (sdpa, Q, K, V, torch.randn(19, 23)),
    "attention scaled": (sdpa, Q, K, V, None, 0.0, False, {"scale": 0.7}),
    "attention in groups": (sdpa, Q, K[:, :2], V[:, :2], None, 0.0, False, {"enable_gqa": True}),
    "attention of one head": (sdpa, Q[0, 0], K[0, 0], V[0, 0]),
    "attention of one query": (sdpa, Q[:, :, :1], K, V),
    "conv of few filters": conv(X, w(7, 6, 3, 3), w(7), padding=(1, 1)),
    "conv of four filters": conv(torch.randn(1, 16, 9, 20), w(4, 16, 3, 3), None, (1, 2), (1, 1)),
}


@pytest.mark.parametrize("target", ["host", "x86-64:v2", "x86-64:v3", "arm64", "arm64:max"])
@pytest.mark.parametrize("name", CASES)
def test_computes_what_torch_does(suite, name, target):
    suite.check(name, target)


@pytest.mark.parametrize("target", ["host", "x86-64:v2", "x86-64:v3", "arm64"])
def test_a_row_by_a_transposed_matrix_is_read_where_it_lies(check, target):
    """Sums in the lanes of vectors: 37 elements leave a rest."""
    query, keys = torch.randn(2, 4, 1, 37), torch.randn(2, 4, 23, 37)
    graph = Graph("scores", Structure.of(((query, keys), {})), Structure.of(0))
    q, x = graph.add_input("q", TensorType.of(query)), graph.add_input("k", TensorType.of(keys))
    graph.set_output([graph.call(aten.matmul.default, q, graph.call(aten.permute.default, x, [0, 1, 3, 2]))])
    check(graph, [query, keys], target=target)
    assert [step["template"] for step in lower(graph, Target.parse("host")).plan["steps"]] == ["vector product"]
