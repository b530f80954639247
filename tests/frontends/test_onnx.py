"""Whole ONNX models in: layer names, weights, dynamic sizes, shape arithmetic, and files that are not to be trusted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.export import Dim

import graphc
from graphc.errors import CaptureError, UnsupportedOperatorError


def model_of(
    nodes: list[onnx.NodeProto], inputs: dict[str, Any], outputs: list[str], weights: dict[str, Any], opset: int = 20
) -> onnx.ModelProto:
    """A model by hand. inputs: name -> sizes, of float32 tensors."""
    graph = helper.make_graph(
        nodes,
        "hand made",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes) for name, sizes in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def onnxruntime(model: onnx.ModelProto, *inputs: torch.Tensor) -> list[np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {spec.name: value.numpy() for spec, value in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feeds)


def exported(module: nn.Module, inputs: tuple[torch.Tensor, ...], **options: Any) -> onnx.ModelProto:
    """By torch's own exporter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module.eval(), inputs, dynamo=True, verbose=False, **options)
    return program.model_proto


class Block(nn.Module):
    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, groups=4)
        self.down = nn.Conv2d(8, width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.conv2(F.hardswish(self.bn1(self.conv1(x)))) + self.down(x))


class Cnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.layer1 = Block(16, 2)
        self.head = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.gelu(self.stem(x)), 3, 2, 1)
        x = self.layer1(F.interpolate(x, scale_factor=2, mode="bilinear"))
        x = torch.cat([F.adaptive_avg_pool2d(x, 1), F.avg_pool2d(x, x.shape[-1])], 1)
        return F.log_softmax(self.head(x.flatten(1)), -1)


class Transformer(nn.Module):
    """Attention written out with reshapes over dynamic sizes, a causal mask and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.positions = nn.Parameter(torch.randn(1, 12, 16))
        self.norm = nn.LayerNorm(16)
        self.qkv = nn.Linear(16, 48)
        self.out = nn.Linear(16, 16)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        batch, length = ids.shape
        x = self.embedding(ids) + self.positions[:, :length]
        q, k, v = self.qkv(self.norm(x)).reshape(batch, length, 3, 4, 4).permute(2, 0, 3, 1, 4)
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        weights = (q @ k.transpose(-1, -2) * 0.5).masked_fill(mask, -1e9).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(batch, length, 16))


def test_network_from_torch_exporter() -> None:
    torch.manual_seed(0)
    module, x = Cnn().eval(), torch.randn(2, 3, 32, 32)
    model = exported(module, (x,), dynamic_shapes={"x": {0: Dim("batch")}})
    graph = graphc.trace(model, (x,), dynamic_shapes={"x": {0: Dim("batch", min=1, max=8)}})
    assert graph.symbols.keys() == {"batch"}
    torch.testing.assert_close(graph.run(x), module(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(graph.run(x[:1]), module(x[:1]), rtol=1e-5, atol=1e-5)
    assert graph.weights["layer1.conv2.weight"].equal(module.layer1.conv2.weight)
    convolutions = [node.meta["path"] for node in graph.calls if node.target is torch.ops.aten.convolution.default]
    assert convolutions == [node.name for node in model.graph.node if node.op_type == "Conv"]


def test_transformer_with_two_dynamic_sizes() -> None:
    torch.manual_seed(0)
    module, ids = Transformer().eval(), torch.randint(20, (3, 7))
    model = exported(module, (ids,), dynamic_shapes={"ids": {0: Dim("batch"), 1: Dim("length", max=12)}})
    dynamic = ({0: Dim("batch", min=1, max=8), 1: Dim("length", min=2, max=12)},)
    graph = graphc.trace(model, (ids,), dynamic_shapes=dynamic)
    assert graph.symbols.keys() == {"batch", "length"}
    for other in (ids, torch.randint(20, (1, 12)), torch.randint(20, (5, 2))):
        torch.testing.assert_close(graph.run(other), module(other), rtol=1e-5, atol=1e-5)


def test_shape_arithmetic_of_old_exporters() -> None:
    """Shape, Gather, Unsqueeze, Concat, Reshape; Shape, Cast, Mul, Floor, Cast, Resize: all gone from the graph."""
    node = helper.make_node
    weights = {
        "zero": np.array(0), "axis": np.array([0]), "minus": np.array([-1]), "two": np.array(2), "three": np.array(3),
        "half": np.array([1.5], np.float32), "front": np.array([2, 12]), "none": np.array([], np.float32),
        "begin": np.array([0]), "end": np.array([2]),
    }  # fmt: skip
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n", "axis"], ["n1"]),
        node("Concat", ["n1", "front", "minus"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["r"]),
        node("Shape", ["r"], ["rs"]),
        node("Slice", ["rs", "begin", "end"], ["lead"]),
        node("Gather", ["rs", "two"], ["h"]),
        node("Cast", ["h"], ["hf"], to=TensorProto.FLOAT),
        node("Mul", ["hf", "half"], ["scaled"]),
        node("Floor", ["scaled"], ["floored"]),
        node("Cast", ["floored"], ["rows"], to=TensorProto.INT64),
        node("Gather", ["rs", "three"], ["w"]),
        node("Unsqueeze", ["w", "axis"], ["columns"]),
        node("Concat", ["lead", "rows", "columns"], ["sizes"], axis=0),
        node("Resize", ["r", "", "", "sizes"], ["y"], mode="linear"),
    ]
    model = model_of(nodes, {"x": ["batch", 4, 24]}, ["y"], weights)
    x = torch.randn(3, 4, 24)
    graph = graphc.trace(model, (x,), dynamic_shapes={"x": {0: Dim("batch", min=1, max=9)}})
    assert [node.target for node in graph.calls] == [
        torch.ops.aten.view.default,
        torch.ops.aten.upsample_bilinear2d.vec,
    ]
    for value in (x, x[:1]):
        torch.testing.assert_close(graph.run(value).numpy(), onnxruntime(model, value)[0], rtol=1e-5, atol=1e-5)


def test_quantized_model_comes_in_quantized() -> None:
    node = helper.make_node
    rng = np.random.default_rng(0)
    weights = {
        "xs": np.float32(0.05), "xz": np.int8(3), "ys": np.float32(0.1), "yz": np.int8(-4),
        "w": rng.integers(-127, 128, (6, 3, 3, 3)).astype(np.int8), "ws": rng.random(6).astype(np.float32) / 50,
        "wz": np.zeros(6, np.int8), "b": rng.integers(-900, 900, 6).astype(np.int32),
        "bs": rng.random(6).astype(np.float32) / 1000,
    }  # fmt: skip
    nodes = [
        node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "quantize"),
        node("DequantizeLinear", ["xq", "xs", "xz"], ["xf"], "dequantize"),
        node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], "weight", axis=0),
        node("DequantizeLinear", ["b", "bs"], ["bf"], "bias", axis=0),
        node("Conv", ["xf", "wf", "bf"], ["yf"], "conv", pads=[1, 1, 1, 1]),
        node("QuantizeLinear", ["yf", "ys", "yz"], ["yq"], "requantize"),
        node("DequantizeLinear", ["yq", "ys", "yz"], ["y"], "result"),
    ]
    model = model_of(nodes, {"x": [1, 3, 8, 8]}, ["y"], weights)
    x = torch.randn(1, 3, 8, 8) * 3
    graph = graphc.trace(model)
    targets = [str(node.target) for node in graph.calls]
    assert targets.count("graphc.dequantize.default") == 4 and targets.count("graphc.quantize.default") == 2
    assert graph.weights["w"].dtype == torch.int8
    difference = np.abs(graph.run(x).numpy() - onnxruntime(model, x)[0])
    assert difference.max() <= 0.1001 and (difference > 1e-6).mean() < 0.01  # a tie may round to the neighbour


def test_several_results_inputs_and_strange_names() -> None:
    node = helper.make_node
    nodes = [
        node("Add", ["in:0", "b/c.weight"], ["s"], "a.b/c"),
        node("Relu", ["s"], ["r"]),
        node("Neg", ["s"], ["n"]),
        node("Identity", ["b/c"], ["w"]),
    ]
    weights = {"b/c.weight": np.ones(3, np.float32), "b/c": np.ones(9, np.float32), "unused": np.ones(1, np.float32)}
    graph = graphc.trace(model_of(nodes, {"in:0": [2, 3], "other": [1]}, ["r", "n", "w"], weights))
    assert [node.name for node in graph.placeholders] == ["in_0", "other"]
    assert [node.meta["path"] for node in graph.calls] == ["a.b/c", "Relu_1", "Neg_2"]
    x = torch.randn(2, 3)
    relu, negated, weight = graph.run(x, torch.zeros(1))
    assert relu.equal(F.relu(x + 1)) and negated.equal(-(x + 1)) and weight.equal(torch.ones(9))


def test_open_sizes_need_example_inputs() -> None:
    model = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": ["batch", 3]}, ["y"], {})
    with pytest.raises(CaptureError, match=r"leaves the sizes 'batch' open \(x: \[batch, 3\]\)"):
        graphc.trace(model)


def test_all_unsupported_operators_at_once() -> None:
    node = helper.make_node
    nodes = [
        node("Det", ["x"], ["d"], "first"),
        node("MaxPool", ["x"], ["m"], "second", kernel_shape=[2], storage_order=1),
        node("NonZero", ["x"], ["z"], "third"),
    ]
    with pytest.raises(UnsupportedOperatorError) as caught:
        graphc.trace(model_of(nodes, {"x": [2, 3, 3]}, ["d", "m"], {}))
    assert [(item.operator, item.path) for item in caught.value.found] == [
        ("Det", "first"), ("MaxPool", "second"), ("NonZero", "third")]  # fmt: skip
    assert "attribute 'storage_order' is 1; legal: 0" in str(caught.value)


def test_shape_that_depends_on_data() -> None:
    nodes = [
        helper.make_node("Cast", ["n"], ["s"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["x", "s"], ["y"], "reshape"),
    ]
    with pytest.raises(UnsupportedOperatorError, match=r"Reshape .*layer 'reshape'.*must not depend on the input"):
        graphc.trace(model_of(nodes, {"x": [4], "n": [2]}, ["y"], {}))


def test_error_names_the_node() -> None:
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"], "product")]
    model = model_of(nodes, {"x": ["batch", 2, 3]}, ["y"], {"w": np.ones((6, 2), np.float32)})
    with pytest.raises(CaptureError, match=r"MatMul 'product' cannot take inputs \[4, 8\], \[6, 2\]"):
        graphc.trace(model, (torch.zeros(4, 2, 4),))


def saved(folder: Path, edit: Callable[[onnx.TensorProto], None] = lambda tensor: None) -> Path:
    """A model with its weight in a file beside it."""
    folder.mkdir(exist_ok=True)
    model = model_of([helper.make_node("Mul", ["x", "w"], ["y"])], {"x": [2, 300]}, ["y"], {"w": np.ones(300, "f4")})
    path = folder / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.bin")
    model = onnx.load(path, load_external_data=False)
    edit(model.graph.initializer[0])
    path.write_bytes(model.SerializeToString())
    return path


def relocate(location: str) -> Callable[[onnx.TensorProto], None]:
    def edit(tensor: onnx.TensorProto) -> None:
        next(entry for entry in tensor.external_data if entry.key == "location").value = location

    return edit


def test_weights_beside_the_model(tmp_path: Path) -> None:
    graph = graphc.trace(saved(tmp_path))
    assert graph.run(torch.full((2, 300), 3.0)).equal(torch.full((2, 300), 3.0))


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(1200))
    for location in ("../secret.bin", str(tmp_path / "secret.bin")):
        with pytest.raises(CaptureError, match="not in the model's own folder"):
            graphc.trace(saved(tmp_path / "model", relocate(location)))
    path = saved(tmp_path / "model", relocate("link.bin"))
    (tmp_path / "model" / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(CaptureError, match="not in the model's own folder"):
        graphc.trace(path)


def test_truncated_and_missing_weights(tmp_path: Path) -> None:
    path = saved(tmp_path)
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(CaptureError, match=r"beyond the end of 'weights.bin'"):
        graphc.trace(path)
    weights.unlink()
    with pytest.raises(CaptureError, match=r"cannot be read from 'weights.bin'"):
        graphc.trace(path)
    with pytest.raises(CaptureError, match="pass the model's path"):
        graphc.trace(onnx.load(path, load_external_data=False))


def test_files_that_are_no_models(tmp_path: Path) -> None:
    good = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": [2]}, ["y"], {}).SerializeToString()
    path = tmp_path / "model.onnx"
    for data in (b"", b"not a model", good[: len(good) // 2], good[:-3]):
        path.write_bytes(data)
        with pytest.raises(CaptureError, match=r"model.onnx"):
            graphc.trace(path)
    with pytest.raises(CaptureError, match=r"cannot read 'absent.onnx'"):
        graphc.trace(tmp_path / "absent.onnx")


def test_damaged_weights_and_names() -> None:
    for damage in (lambda tensor: setattr(tensor, "data_type", 99), lambda tensor: tensor.dims.append(2)):
        model = model_of([helper.make_node("Mul", ["x", "w"], ["y"])], {"x": [3]}, ["y"], {"w": np.ones(3, "f4")})
        damage(model.graph.initializer[0])
        with pytest.raises(CaptureError):
            graphc.trace(model)
    model = model_of([helper.make_node("Relu", ["x"], ["y"], "abcdef")], {"x": [3]}, ["y"], {})
    model.ParseFromString(model.SerializeToString().replace(b"hand made", b"hand\x87made"))
    with pytest.raises(CaptureError, match="damaged"):
        graphc.trace(model)


def test_invalid_and_old_models() -> None:
    undefined = model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": [2]}, ["y"], {})
    undefined.graph.node[0].input[0] = "nowhere"
    with pytest.raises(CaptureError, match="not valid ONNX"):
        graphc.trace(undefined)
    with pytest.raises(CaptureError, match="operator set 7; legal: 9 and up"):
        graphc.trace(model_of([helper.make_node("Relu", ["x"], ["y"])], {"x": [2]}, ["y"], {}, opset=7))
