"""Graphs out as ONNX: ONNX Runtime must agree with the graph run in torch, bit for bit where all is integers."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import graphc
from graphc.errors import UnsupportedOperatorError
from graphc.exporters.onnx import export
from graphc.exporters.onnx_forms import FORMS
from graphc.exporters.onnx_functions import NAMES, function
from graphc.graph import Graph
from graphc.operators import __all__ as operators
from graphc.pipeline import PassContext, pipeline
from graphc.structure import Structure
from graphc.tensor_type import TensorType
from graphc.tools.zoo import data
from graphc.tools.zoo.catalog import MODELS

graphc_ops = torch.ops.graphc


def run_onnxruntime(model: onnx.ModelProto, *inputs: Tensor) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, {spec.name: x.numpy() for spec, x in zip(session.get_inputs(), inputs, strict=True)})


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal floats, or integers over the whole range of their type."""
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator)
    limits = torch.iinfo(dtype)
    return torch.randint(limits.min, limits.max + 1, shape, generator=generator).to(dtype)


Call = tuple[Any, Tensor, tuple[Any, ...]]  # operator, input, further arguments, of which tensors become weights


def graph_of(calls: list[Call]) -> Graph:
    """A graph of independent operators: one export is quicker than many."""
    graph = Graph("calls", Structure.of((tuple(x for _, x, _ in calls), {})), Structure.of([1] * len(calls)))
    inputs = [graph.add_input(f"x{i}", TensorType.of(x)) for i, (_, x, _) in enumerate(calls)]
    results = []
    for node, (target, _, arguments) in zip(inputs, calls, strict=True):
        rest = [graph.add_weight("w", a) if isinstance(a, Tensor) else a for a in arguments]
        results.append(graph.call(target, node, *rest))
    graph.set_output(results)
    return graph


def assert_bit_equal(calls: list[Call]) -> None:
    graph, inputs = graph_of(calls), [x for _, x, _ in calls]
    expected = [value.numpy() for value in graph.run_flat(inputs)]
    for got, want, call in zip(run_onnxruntime(export(graph), *inputs), expected, calls, strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want, err_msg=str(call))


# -- ATen --------------------------------------------------------------------------------------------

IMAGE = (2, 4, 9, 8)
FUNCTIONS: list[tuple[Callable[..., Any], tuple[Tensor, ...]]] = [
    (lambda x, w: F.conv2d(x, w, None, (2, 1), (1, 0), (1, 2), 2), (random(*IMAGE), random(6, 2, 3, 3))),
    (lambda x, w, b: F.conv_transpose2d(x, w, b, 2, 1, 1), (random(*IMAGE), random(4, 3, 3, 3), random(3))),
    (lambda x, w: F.conv1d(x, w, padding=1), (random(2, 3, 9), random(4, 3, 3))),
    (lambda x, w, b: F.linear(x, w, b), (random(2, 5, 4), random(3, 4), random(3))),
    (torch.matmul, (random(2, 3, 4), random(2, 4, 5))),
    (torch.addmm, (random(5), random(3, 4), random(4, 5))),
    (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), (random(1, 2, 5, 4),) * 3),
    (lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), (random(*IMAGE),)),
    (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (random(*IMAGE),)),
    (lambda x: F.adaptive_avg_pool2d(x, 1), (random(*IMAGE),)),
    (lambda x: F.layer_norm(x, (8,), eps=0.5), (random(*IMAGE),)),
    (lambda x, w: F.group_norm(x, 2, w, eps=0.5), (random(*IMAGE), random(4))),
    (lambda x, m, v: F.batch_norm(x, m, v.abs(), eps=0.5), (random(*IMAGE), random(4), random(4))),
    (lambda x: (x.softmax(1), x.log_softmax(-1)), (random(3, 4),)),
    (lambda x: (x.mean((1, 2)), x.sum(1, keepdim=True), x.amax(0), x.amin((0, 1)), x.var(1)), (random(2, 3, 4),)),
    (lambda x: (x.argmax(1), x.argmin(0, keepdim=True), x.cumsum(1), (x > 0).any(1)), (random(3, 4),)),
    (lambda x: x.prod(1), (random(3, 4),)),
    (lambda w, i: (F.embedding(i, w), w[i], w.index_select(1, i[0])), (random(5, 6), torch.tensor([[0, 3], [4, 1]]))),
    (lambda x, i: x.gather(1, i), (random(3, 4), torch.tensor([[0, 3], [2, 1], [1, 1]]))),
    (lambda x: F.interpolate(x, scale_factor=2, mode="nearest"), (random(*IMAGE),)),
    (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), (random(*IMAGE),)),
    (lambda x: F.interpolate(x, size=(5, 11), mode="bilinear", align_corners=True), (random(*IMAGE),)),
    (lambda x, y: (x + y, x - 2 * y, x * y, x / y), (random(3, 4), random(4))),
    (lambda x, y: (torch.maximum(x, y), torch.minimum(x, y)), (random(3, 4), random(4))),
    (lambda x: (x.abs() ** 0.5, x**2, 2**x, -x, x.exp(), (x.abs() + 1).log(), (x.abs() + 1).rsqrt()), (random(3, 4),)),
    (lambda x: (x.sin(), x.cos(), x.tanh(), x.sigmoid(), x.erf(), x.relu(), x.reciprocal()), (random(3, 4),)),
    (lambda x: (F.gelu(x), F.gelu(x, approximate="tanh")), (random(3, 4),)),
    (lambda x: (F.silu(x), F.hardswish(x), F.hardsigmoid(x)), (random(3, 4),)),
    (lambda x: (F.leaky_relu(x, 0.2), F.elu(x, 0.5), F.softplus(x), F.relu6(x), x.clamp(-0.5, 0.3)), (random(3, 4),)),
    (lambda x, w: F.prelu(x, w), (random(*IMAGE), random(4))),
    (lambda x, y: (torch.where(x > y, x, y), x == y, x <= y, (x > 0) & (y > 0), ~(x > 0)), (random(3, 4), random(4))),
    (lambda x: (x.floor(), x.ceil(), x.round(), x.sign(), x.isnan(), x.log1p(), x.expm1()), (random(3, 4).abs(),)),
    (lambda x: (x % 3, torch.fmod(x, 3), x // 3, x.to(torch.int32)), (random(3, 4) * 9,)),
    (lambda x: (x.view(4, 3), x.permute(1, 0), x.transpose(0, 1), x.unsqueeze(1)), (random(3, 4),)),
    (lambda x: (x[:, 1:3], x[::2, -1], x.flip(1), x.roll(1, 0)), (random(3, 4),)),
    (lambda x: (x.expand(2, 3, 4), x.repeat(2, 1), x.flatten(), x.tril(), x.triu(1)), (random(3, 4),)),
    (lambda x: (*x.split(3, 1), *x.split([1, 6], 1), *x.unbind(0), *x.chunk(2, 1)), (random(3, 7),)),
    (lambda x: (torch.cat([x, x], 1), torch.stack([x, x], 1), F.pad(x, (1, 2, 0, 1), value=3.0)), (random(3, 4),)),
    (lambda x: F.pixel_shuffle(x, 2), (random(1, 8, 3, 2),)),
    (lambda x: (F.relu(x), x.clamp(-3, 40), F.max_pool2d(x, 2)), (random(*IMAGE, dtype=torch.int8),)),
    (lambda x: torch.cat([x, x.flip(0)], 1), (random(*IMAGE, dtype=torch.int8),)),
    (lambda x: x.sum((2, 3), dtype=torch.int32), (random(*IMAGE, dtype=torch.int8),)),
    (lambda x, y: x + y, (random(3, 4, dtype=torch.int32) // 2, random(4, dtype=torch.int32) // 2)),
    (lambda x: x.masked_fill(torch.ones(4, 4, dtype=torch.bool).triu(1), -1e9), (random(2, 4, 4),)),
]  # fmt: skip


class EveryFunction(nn.Module):
    def forward(self, inputs: list[tuple[Tensor, ...]]) -> list[Any]:
        return [function(*values) for (function, _), values in zip(FUNCTIONS, inputs, strict=True)]


def test_aten_operators_agree_with_onnxruntime() -> None:
    inputs = [values for _, values in FUNCTIONS]
    graph = graphc.trace(EveryFunction(), (inputs,))
    leaves = [value for values in inputs for value in values]
    expected = graph.run_flat(leaves)
    for node, got, want in zip(graph.output.args[0], run_onnxruntime(export(graph), *leaves), expected, strict=True):
        assert got.dtype == want.numpy().dtype, node
        np.testing.assert_allclose(got, want.numpy(), rtol=2e-5, atol=2e-5, err_msg=str(node.target))


# -- graphc's operators ------------------------------------------------------------------------------


def test_every_graphc_operator_has_a_form() -> None:
    assert {str(target) for target in FORMS if str(target).startswith("graphc")} == {
        f"graphc.{name}.default" for name in operators
    }


RANGES = [(-128, 127), (-100, 90), (0, 255), (-(2**31), 2**31 - 1)]


def test_rescale_is_exact() -> None:
    x = random(3, 5, 5, dtype=torch.int32)
    x[0, 0] = torch.tensor([-(2**31), 2**31 - 1, 0, -1, 1])
    multipliers = torch.tensor([2**30, 2**31 - 1, 1234567890, 2**30 + 1, 2000000001], dtype=torch.int32)
    shifts = torch.tensor([33, 31, 62, 40, 2], dtype=torch.int32)
    parameters = [(multipliers, shifts, 1), (multipliers, shifts, -1), (multipliers[0], shifts[0], None)]
    assert_bit_equal(
        [
            (graphc_ops.rescale.default, x, (multiplier, shift, 5, -3, axis, *limits))
            for multiplier, shift, axis in parameters
            for limits in RANGES
        ]
    )


def halve(x: Tensor) -> Call:
    factor = (torch.tensor(2**30, dtype=torch.int32), torch.tensor(31, dtype=torch.int32))
    return graphc_ops.rescale.default, x, (*factor, 0, 0, None, -128, 127)


def test_rescale_rounds_half_up() -> None:
    x = torch.arange(-9, 10, dtype=torch.int32)
    (halved,) = graph_of([halve(x)]).run_flat([x])
    assert halved.equal(torch.floor(x * 0.5 + 0.5).to(torch.int8))
    assert_bit_equal([halve(x)])


def test_integer_products_are_exact() -> None:
    """Also at the ends of the ranges, where kernels with saturating 16-bit sums go wrong."""
    bias = random(8, dtype=torch.int32) // 2
    calls: list[Call] = []
    for dtype, zero in ((torch.int8, -77), (torch.uint8, 200)):
        limits = torch.iinfo(dtype)
        for extremes in (None, (limits.min, -128), (limits.min, 127), (limits.max, -128), (limits.max, 127)):
            x, weight = random(1, 32, 7, 6, dtype=dtype), random(8, 16, 3, 3, dtype=torch.int8, seed=1)
            if extremes is not None:
                x, weight = torch.full_like(x, extremes[0]), torch.full_like(weight, extremes[1])
            matrix = weight.flatten()[: 8 * 42].reshape(8, 42)
            calls += [
                (graphc_ops.integer_convolution.default, x, (weight, bias, zero, [2, 1], [1, 2], [1, 2], 2)),
                (graphc_ops.integer_convolution.default, x, (weight, None, zero, [1, 1], [0, 0], [1, 1], 2)),
                (graphc_ops.integer_convolution.default, x.flatten(2), (weight[..., 0], bias, zero, [2], [1], [1], 2)),
                (graphc_ops.integer_linear.default, x.flatten(2), (matrix, bias, zero)),
                (graphc_ops.integer_linear.default, x.flatten(2), (matrix, None, zero)),
                (graphc_ops.integer_sum_pool2d.default, x, (zero, [3, 2], [2, 1], [1, 1])),
            ]
    assert_bit_equal(calls)


def test_quantize_and_dequantize_are_exact() -> None:
    x = random(3, 4, 5) * 40
    x[0, 0] = torch.tensor([0.25, 0.75, 1.25, -0.25, 1e30])  # ties at scale 0.5
    scale, zero = torch.tensor([0.5, 0.1, 3.0, 0.7]), torch.tensor([0, 7, 100, 3], dtype=torch.int32)
    calls: list[Call] = []
    for limits in ((-128, 127), (-127, 127), (0, 255), (-(2**20), 2**20)):
        for parameters in ((scale, zero, 1), (scale[0], zero[0], None)):
            calls.append((graphc_ops.quantize.default, x, (*parameters, *limits)))
            calls.append((graphc_ops.dequantize.default, graphc_ops.quantize(x, *parameters, *limits), parameters))
    assert_bit_equal(calls)


def test_weights_are_decoded_exactly() -> None:
    q, scale = random(4, 24, dtype=torch.uint8), torch.rand(4, 3)
    calls: list[Call] = []
    for bits in range(1, 9):
        calls.append((graphc_ops.unpack.default, random(3, bits * 3, dtype=torch.uint8), (bits, 24)))
        calls.append((graphc_ops.unpack.default, random(-(-bits * 7 // 8), dtype=torch.uint8), (bits, 7)))
    for zero in (None, torch.tensor(7, dtype=torch.uint8), random(4, 3, dtype=torch.uint8)):
        calls.append((graphc_ops.dequantize_groups.default, q, (scale.to(torch.float16), zero, 8)))
        calls.append((graphc_ops.dequantize_groups.default, q.view(torch.int8), (scale[:, :1], None, 24)))
    assert_bit_equal(calls)


def test_codewords_and_kept_elements_are_found_exactly() -> None:
    indices, mask = random(2, 5, 6, dtype=torch.uint8) % 16, random(3, 4, dtype=torch.uint8) % 2
    positions = torch.tensor([[0, 3, 2, 1], [1, 2, 0, 1]], dtype=torch.uint8)
    calls: list[Call] = [
        (graphc_ops.lookup.default, indices, (random(16, 4).to(torch.float16),)),
        (graphc_ops.lookup.default, indices[0, 0], (random(16, 3),)),
        (graphc_ops.lookup.default, indices, (random(3, 16, 4).to(torch.float16),)),
        (graphc_ops.expand_2_4.default, random(3, 2, 4), (positions.expand(3, 2, 4),)),
        (graphc_ops.expand_blocks.default, random(int(mask.sum()), 2, 3), (mask,)),
        (graphc_ops.expand_gaps.default, random(4), (torch.tensor([2, 0, 7, 1], dtype=torch.uint8), 3, 6)),
    ]
    assert_bit_equal(calls)


@pytest.mark.parametrize("books", [(16, 4), (3, 16, 4)])
def test_products_by_tables(books: tuple[int, ...]) -> None:
    x = random(2, 3, 12)
    graph = Graph("g", Structure.of(((x,), {})), Structure.of(0))
    node, codebook = graph.add_input("x", TensorType.of(x)), graph.add_weight("c", random(*books).to(torch.float16))
    tables = graph.call(graphc_ops.partial_products.default, node, codebook)
    indices = graph.add_weight("i", random(7, 3, dtype=torch.uint8) % 16)
    graph.set_output([graph.call(graphc_ops.gather_sum.default, tables, indices)])
    (got,) = run_onnxruntime(export(graph), x)
    np.testing.assert_allclose(got, graph.run(x).numpy(), rtol=1e-5, atol=1e-5)


def test_quantize_dynamic_is_exact() -> None:
    x = random(2, 3, 64) * 9
    x[1, 2] = 0
    x[0, 0, :4] = torch.tensor([127.0, 0.5, 1.5, -2.5])
    graph = Graph("g", Structure.of(((x,), {})), Structure.of((0, 1)))
    both = graph.call(graphc_ops.quantize_dynamic.default, graph.add_input("x", TensorType.of(x)), 32)
    graph.set_output([graph.call(operator.getitem, both, part) for part in range(2)])
    for got, want in zip(run_onnxruntime(export(graph), x), graph.run_flat([x]), strict=True):
        np.testing.assert_array_equal(got, want.numpy())


# -- whole models ------------------------------------------------------------------------------------


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 4)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = F.relu(self.norm(self.stem(image)))
        x = F.relu(x + self.body(x))
        return {"logits": self.head(x.mean((2, 3))), "shape": x.flatten(1)}


@pytest.fixture
def integers() -> tuple[Graph, Tensor]:
    """An int8 network with a dynamic batch."""
    torch.manual_seed(0)
    image = random(4, 3, 10, 10)
    shapes = {"image": {0: Dim("batch", min=1, max=9)}}
    graph = graphc.trace(Residual().eval(), (image,), dynamic_shapes=shapes)
    return pipeline("int8").run(graph, PassContext(calibration=[[image]])), image


def test_integer_network_is_bit_equal(integers: tuple[Graph, Tensor]) -> None:
    graph, image = integers
    targets = {str(node.target) for node in graph.calls}
    assert {"graphc.integer_convolution.default", "graphc.rescale.default"} <= targets
    model = export(graph)
    for batch in (image, image[:1]):
        logits, flat = run_onnxruntime(model, batch)
        expected = graph.run(batch)
        np.testing.assert_array_equal(logits, expected["logits"].numpy())
        np.testing.assert_array_equal(flat, expected["shape"].numpy())


@pytest.mark.parametrize("text", ["linear", "linear(bits=4,group=32)", "linear(bits=3,group=16,symmetric=false)"])
def test_compressed_network(text: str) -> None:
    """Weights leave as they are stored, and ONNX Runtime decodes them and quantizes activations as torch does."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10)).eval()
    x = random(5, 64)
    graph = graphc.trace(network, (x,), dynamic_shapes=({0: Dim("batch", min=1, max=9)},))
    graph = pipeline(f'canonicalize,compress{{format="{text}"}},quantize_activations{{group=32}}').run(
        graph, PassContext()
    )
    model = export(graph)
    stored = sum(len(tensor.raw_data) for tensor in model.graph.initializer if ".weight." in tensor.name)
    assert stored == sum(tensor.nbytes for name, tensor in graph.weights.items() if ".weight." in name)
    for batch in (x, x[:1]):
        (got,) = run_onnxruntime(model, batch)
        np.testing.assert_allclose(got, graph.run(batch).numpy(), rtol=1e-5, atol=1e-5)


def test_model_is_plain_and_named(integers: tuple[Graph, Tensor]) -> None:
    graph, _ = integers
    model = export(graph)
    assert {node.domain for node in model.graph.node} == {"", "graphc"}
    assert {f.name for f in model.functions} == {node.op_type for node in model.graph.node if node.domain == "graphc"}
    assert all(node.domain == "" for name in NAMES for node in function(name).node)
    assert set(graph.weights) <= {tensor.name for tensor in model.graph.initializer}
    assert model.graph.input[0].name == "image"
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [output.name for output in model.graph.output] == ["output_0", "output_1"]
    assert "stem/integer_convolution" in {node.name for node in model.graph.node}
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert str(Path(graphc.__file__).parent).encode() not in model.SerializeToString()


def test_export_is_deterministic_and_written_whole(integers: tuple[Graph, Tensor], tmp_path: Path) -> None:
    graph, _ = integers
    model = export(graph, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == export(graph).SerializeToString() == model.SerializeToString()
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_integers_come_back_as_they_went(integers: tuple[Graph, Tensor]) -> None:
    graph, image = integers
    shapes = {"image": {0: Dim("batch", min=1, max=9)}}
    back = graphc.trace(export(graph), (image,), dynamic_shapes=shapes)
    for got, want in zip(back.run_flat([image[:2]]), graph.run_flat([image[:2]]), strict=True):
        assert got.equal(want)
    for name in NAMES:
        counts = [sum(str(node.target) == f"graphc.{name}.default" for node in g.calls) for g in (graph, back)]
        assert counts[0] == counts[1]


def test_another_meaning_of_our_functions_is_honoured() -> None:
    x = torch.arange(-4, 5, dtype=torch.int32)
    model = export(graph_of([halve(x)]))
    next(node for node in model.functions[0].node if node.output[0] == "raised").op_type = "Sub"
    (expected,) = run_onnxruntime(model, x)
    np.testing.assert_array_equal(graphc.trace(model).run(x).numpy(), expected)
    assert (expected != graph_of([halve(x)]).run_flat([x])[0].numpy()).any()


def test_unsupported_operator_names_the_layer() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i1e(x)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd = Odd()

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(self.odd(x))

    graph = graphc.trace(Outer(), (random(3),))
    with pytest.raises(UnsupportedOperatorError, match=r"aten.special_i1e.default .*in layer 'odd'"):
        export(graph)


def test_resnet20_int8_is_bit_equal() -> None:
    try:
        entry = MODELS["resnet20_jpeg"]
        model, (images,) = entry.build(), entry.example_inputs(8)
        batches = [list(inputs) for inputs in entry.calibration(8, 8)]
    except data.DataNotFoundError as missing:
        pytest.skip(str(missing))
    graph = pipeline("int8").run(graphc.trace(model, (images,)), PassContext(calibration=batches))
    (logits,) = run_onnxruntime(export(graph), images)
    np.testing.assert_array_equal(logits, graph.run(images).numpy())
