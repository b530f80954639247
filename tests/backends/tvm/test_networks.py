"""Whole networks: fused groups, channels-last layouts, aliases, dynamic sizes, threads."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

import graphc.operators  # noqa: F401  (registers torch.ops.graphc)
from graphc.frontends import trace
from graphc.graph import Graph
from graphc.pipeline import PassContext, pipeline
from graphc.structure import Structure
from graphc.tensor_type import SymbolRange, TensorType, symbol

aten, quantized = torch.ops.aten, torch.ops.graphc


class Branches(nn.Module):
    """Values shared between branches, results in the middle, joined channels, several layouts of one value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 20, 3, 2, 1)
        self.wide = nn.Conv2d(20, 36, 3, padding=1)
        self.narrow = nn.Conv2d(20, 5, 1)
        self.depthwise = nn.Conv2d(41, 41, 3, padding=1, groups=41)
        self.head = nn.Linear(41 * 5 * 4, 7)

    def forward(self, x):
        x = F.hardswish(self.stem(x))
        y = torch.cat([F.relu(self.wide(x)), self.narrow(x)], 1)
        z = F.max_pool2d(self.depthwise(y) * torch.sigmoid(y), 2)
        tokens = z.flatten(2).transpose(1, 2)
        return self.head(z.flatten(1)), tokens.softmax(-1), (y + y.mean((2, 3), keepdim=True))[:, 3:9], x


class Decoder(nn.Module):
    """Rotary positions, grouped queries, a mask, root-mean-square norms, a gated product, dynamic batch and length."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.q, self.kv, self.o = nn.Linear(32, 32), nn.Linear(32, 16), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 48), nn.Linear(24, 32)
        self.scale = nn.Parameter(torch.rand(32))

    def norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.scale

    def forward(self, ids, mask):
        x = self.embedding(ids)
        batch, length, _ = x.shape
        h = self.norm(x)
        q = self.q(h).view(batch, length, 4, 8).transpose(1, 2)
        k, v = self.kv(h).view(batch, length, 2, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        angles = torch.arange(length)[:, None] * torch.tensor([1.0, 0.1, 0.01, 0.001])
        even, odd = q[..., ::2], q[..., 1::2]
        q = torch.stack([even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()], -1)
        keys = torch.cat([k, v], -1).repeat_interleave(2, 1)
        a = F.scaled_dot_product_attention(q.flatten(-2), keys, keys, attn_mask=mask[:, None, None, :])
        x = x + self.o(a.transpose(1, 2).reshape(batch, length, 32))
        gate, value = self.up(self.norm(x)).chunk(2, -1)
        x = x + self.down(F.silu(gate) * value)
        return x @ self.embedding.weight.T, x[:, -1].tanh()


def fused(graph):
    return pipeline("float").run(graph, PassContext(), ())


def test_branches(check):
    x = torch.randn(1, 3, 19, 17)
    graph = trace(Branches().eval(), (x,))
    check(fused(graph), [x])
    check(graph, [x])


def test_decoder_of_dynamic_batch_and_length(check):
    batch, length = Dim("batch", min=1, max=5), Dim("length", min=2, max=40)
    inputs = lambda b, n: (torch.randint(50, (b, n)), torch.rand(b, n) < 0.8)  # noqa: E731
    shapes = {"ids": {0: batch, 1: length}, "mask": {0: batch, 1: length}}
    graph = trace(Decoder().eval(), inputs(3, 11), dynamic_shapes=shapes)
    check(fused(graph), *[inputs(b, n) for b, n in ((3, 11), (1, 2), (5, 40), (2, 17))])


def test_images_of_dynamic_size(check):
    model = nn.Sequential(
        nn.Conv2d(2, 17, 3, padding=1), nn.ReLU(), nn.Conv2d(17, 17, 3, groups=17), nn.MaxPool2d(2), nn.Conv2d(17, 4, 1)
    ).eval()  # fmt: skip
    shapes = ({0: Dim("batch", max=4), 2: Dim("height", min=8, max=40), 3: Dim("width", min=8, max=40)},)
    graph = trace(model, (torch.randn(2, 2, 12, 20),), dynamic_shapes=shapes)
    check(fused(graph), *[[torch.randn(b, 2, h, w)] for b, h, w in ((2, 12, 20), (1, 8, 8), (4, 40, 33), (1, 9, 40))])


def test_quantized_residual_networks_are_equal_on_every_target(check):
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 24, 3, padding=1)
            self.c, self.d = nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Linear(24, 10)

        def forward(self, x):
            x = F.relu(self.a(x))
            x = F.relu(x + self.b(x))
            return self.d(F.max_pool2d(self.c(x), 2).mean((2, 3)))

    batches = [[torch.randn(1, 3, 12, 12)] for _ in range(4)]
    graph = pipeline("int8").run(trace(Residual().eval(), batches[0]), PassContext(calibration=batches), ())
    assert any(node.target is quantized.integer_convolution.default for node in graph.calls)
    for target in ("host", "arm64"):
        check(graph, *batches, target=target, rtol=0, atol=0)


def test_one_thread_and_several_give_the_same_bits(compiled):
    x = torch.randn(1, 3, 64, 64)
    graph = fused(trace(nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3)).eval(), (x,)))
    one, three = (compiled(graph, "host", threads).run(x) for threads in (1, 3))
    assert torch.equal(torch.as_tensor(one), torch.as_tensor(three))


def compressed(activation: bool) -> Graph:
    """A linear layer whose weight is stored in int8, and decoded when the model is loaded."""
    graph = Graph("compressed", Structure.of(((0,), {})), Structure.of((0, 1)))
    x = graph.add_input("x", TensorType((symbol("batch"), 40), torch.float32))
    graph.symbols["batch"] = SymbolRange(1, 30)
    q = graph.add_weight("q", torch.randint(-127, 128, (50, 40), dtype=torch.int8))
    scale = graph.add_weight("scale", torch.rand(50) / 1000)
    zero = graph.add_weight("zero", torch.randint(-9, 9, (50,), dtype=torch.int32))
    w = graph.call(quantized.dequantize.default, q, scale, zero, 0)
    y = graph.call(aten.linear.default, x, w)
    graph.set_output([y, graph.call(aten.mul.Tensor, w, 2.0) if activation else y])
    return graph


def test_weights_computed_at_load(check, compiled):
    for activation in (False, True):
        check(compressed(activation), [torch.randn(1, 40)], [torch.randn(30, 40)])
    plan = compiled(compressed(False)).plan
    assert [step["template"] for step in plan["steps"]] == ["elementwise", "packing", "matrix product", "elementwise"]
    assert plan["init_steps"] == 2
    assert "packed at load" in plan["steps"][1]["reason"]


@pytest.mark.parametrize("target", ["host", "arm64"])
def test_integer_weights_computed_at_load(check, target):
    graph = Graph("codebook", Structure.of(((0,), {})), Structure.of(0))
    x = graph.add_input("x", TensorType((3, 33), torch.int8))
    table = graph.add_weight("table", torch.randint(-127, 128, (16,), dtype=torch.int8))
    codes = graph.add_weight("codes", torch.randint(0, 16, (20, 33), dtype=torch.int64))
    bias = graph.add_weight("bias", torch.randint(-999, 999, (20,), dtype=torch.int32))
    w = graph.call(aten.view.default, graph.call(aten.index.Tensor, table, [codes]), [20, 33])
    graph.set_output([graph.call(quantized.integer_linear.default, x, w, bias, 5)])
    check(graph, [torch.randint(-128, 128, (3, 33), dtype=torch.int8)], target=target)
