"""Decoding of weights and dynamic quantization: equal to the reference on every instruction set."""

import pytest
import torch
from torch import nn

import graphc
from graphc.backends.tvm import lower
from graphc.operators.weights import pack
from graphc.pipeline import Pipeline
from graphc.target import Target

ops = torch.ops.graphc
torch.manual_seed(0)
TARGETS = ("host", "x86-64:v2", "x86-64:v3", "arm64:cortex-a72", "arm64:cortex-a76")


def stored(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def codes(bits: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 2**bits, shape, dtype=torch.uint8)


HALF = torch.tensor([[0.1, -3e-6, 60000.0], [2.0, 0.0, 6e-8]], dtype=torch.float16)
Q = torch.randint(-128, 128, (2, 48), dtype=torch.int8)
X = torch.randn(3, 5, 96) * torch.rand(3, 5, 1) * 30
X[1, 2] = 0

CASES = {
    **{f"unpack {bits}": (ops.unpack.default, pack(codes(bits, 7, 37), bits), bits, 37) for bits in range(1, 9)},
    "decode f16": (ops.dequantize_groups.default, Q, stored(HALF), None, 16),
    "decode f32": (
        ops.dequantize_groups.default,
        Q,
        stored(HALF.float()),
        stored(torch.tensor(9, dtype=torch.int8)),
        16,
    ),
    "decode zeros": (ops.dequantize_groups.default, codes(8, 2, 48), stored(HALF), stored(codes(8, 2, 3)), 16),
    "decode rows": (ops.dequantize_groups.default, Q, stored(HALF[:, :1]), stored(Q[:, :1]), 48),
    "quantize": ((ops.quantize_dynamic.default, 0), X, 32),
    "scales": ((ops.quantize_dynamic.default, 1), X, 32),
    "quantize odd groups": ((ops.quantize_dynamic.default, 0), X, 3),
    "quantize rows": ((ops.quantize_dynamic.default, 0), X[0, 0], 96),
}
RTOL = ATOL = 0.0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_is_equal_to_the_reference(suite, name, target):
    suite.check(name, target)


LOOKED_UP = [
    *(f"linear(bits={bits},group=16)" for bits in (2, 3, 4, 8)),
    *(f"vector(d={d},codewords=16)" for d in (1, 3)),
    "vector(scale=false)",
    "binary",
    "sparse(values=int8)",
    "linear(bits=2) + vector(d=4)",
]


@pytest.mark.parametrize("text", [*LOOKED_UP, "low_rank(rank=3)"])
@pytest.mark.parametrize("target", ["host", "arm64:cortex-a76"])
def test_an_embedding_decodes_the_rows_that_it_looks_up(text, target, check):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 48)).eval()
    x = torch.tensor([[0, 49, 7], [7, 1, 48]])
    graph = Pipeline(f'compress{{format="{text}"}}').run(graphc.trace(model, (x,)))
    check(graph, [x], target=target, rtol=1e-6, atol=1e-6)
    program = lower(graph, Target.parse(target))
    whole = text not in LOOKED_UP  # products of matrices are computed for all rows, at load
    assert (program.plan["init_steps"] > 0) == whole
    assert len(program.weights) < 50 * 48 * 4


TIED = [
    *(f"linear(bits={bits},group=32)" for bits in (2, 3, 4, 8)),
    "linear(symmetric=false)",
    "vector(d=4,codewords=16)",
    "vector(d=4,codewords=256,scale=false)",
    "binary",
]


@pytest.mark.parametrize("text", TIED)
@pytest.mark.parametrize("target", ["host", "x86-64:v2", "x86-64:vnni", "arm64:cortex-a76"])
def test_a_tied_weight_is_stored_once_for_the_embedding_and_the_layer(text, target, check):
    """Rows fill no whole panel, columns no whole unit: what lies beyond must do no harm."""

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.last = nn.Embedding(250, 96), nn.Linear(96, 250, bias=False)
            self.last.weight = self.table.weight

        def forward(self, x):
            return self.last(self.table(x))

    torch.manual_seed(0)
    x = torch.tensor([3, 249, 0])
    graph = Pipeline(f'compress{{format="{text}"}}').run(graphc.trace(Tied().eval(), (x,)))
    check(graph, [x], target=target, rtol=1e-4, atol=1e-4)
    program = lower(graph, Target.parse(target))
    templates = [step["template"] for step in program.plan["steps"]]
    product = "compressed product" if text.startswith("linear") else "codeword product"
    assert templates == ["packing", "elementwise", product]
    codes, *others = sorted((weight.nbytes for weight in graph.weights.values()), reverse=True)
    assert len(program.weights) <= codes + 3 * sum(others) + 256, "scales and codebooks lie there twice, codes once"


@pytest.mark.parametrize(
    "text",
    [
        *(f"linear(bits={bits})" for bits in (2, 3, 4, 8)),
        *(f"vector(d=4,codewords={codewords})" for codewords in (2, 4, 16, 256)),
        "vector(d=4,codewords=16,codebooks=2)",
        "binary",
        "sparse",
        "block_sparse",
        "unstructured",
        "low_rank(rank=5)",
        "low_rank(rank=5,factors=int8)",
        "linear(bits=2) + low_rank(rank=3)",
    ],
)
@pytest.mark.parametrize("target", ["host", "x86-64:v3", "arm64:cortex-a76"])
def test_an_artifact_holds_what_the_format_stores(text, target, check):
    """However a kernel pads and widens it: what would grow is packed at load."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(256, 192)).eval(), torch.randn(3, 256)
    graph = Pipeline(f'compress{{format="{text}"}},split_sums,split_low_rank').run(graphc.trace(model, (x,)))
    check(graph, [x], target=target, rtol=1e-4, atol=1e-4)
    parts = [weight.nbytes for weight in graph.weights.values()]
    most = sum(part + max(part // 8, 1024) + 64 for part in parts)  # a part begins at a cache line
    assert len(lower(graph, Target.parse(target)).weights) <= most
