"""Each ONNX operator, taken in as a Graph and run, against ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper

from graphc.frontends import onnx as frontend
from graphc.frontends.torch_export import capture

F32, I64 = np.float32, np.int64


def real(*shape: int) -> np.ndarray:
    """Different numbers in every call of one case, the same in every run."""
    size = int(np.prod(shape))
    return (np.sin(np.arange(size) * 1.7 + size) * 2).astype(F32).reshape(shape)


def positive(*shape: int) -> np.ndarray:
    return np.abs(real(*shape)) + F32(0.1)


def whole(*shape: int, low: int = -5, high: int = 6, dtype: Any = I64) -> np.ndarray:
    size = int(np.prod(shape))
    return (low + (np.arange(size) * 7919 + size) % (high - low)).astype(dtype).reshape(shape)


def truth(*shape: int) -> np.ndarray:
    return whole(*shape, low=0, high=2) == 1


def ints(*values: int) -> np.ndarray:
    return np.array(values, I64)


@dataclass
class Case:
    """One node: `inputs` are given at run time, `constants` as initializers after them (None: left out)."""

    operator: str
    inputs: tuple[Any, ...]
    constants: tuple[Any, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 20
    results: int = 1
    close: float = 1e-5
    reorder: tuple[int, ...] | None = None  # the node's order of inputs where constants come first

    def __str__(self) -> str:
        return "-".join([self.operator, *[f"{k}={v}" for k, v in self.attributes.items()], str(self.opset)])


def case(operator: str, *inputs: Any, constants: Any = (), **rest: Any) -> Case:
    options = {name: rest.pop(name) for name in ("opset", "results", "close", "reorder") if name in rest}
    return Case(operator, inputs, tuple(constants), rest, **options)


IMAGE = real(2, 4, 7, 6)
SMALL = real(1, 2, 4, 5)

# Symmetric coordinates put the middle element on a whole number: rounding down or up there is a matter of one bit.
TIES = [("half_pixel_symmetric", "floor"), ("half_pixel_symmetric", "ceil")]

UNARY = [
    "Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Mish", "Neg", "Relu", "Round", "Sigmoid", "Sign", "Sin",
    "Softplus", "Softsign", "Tanh", "Tan", "Atan", "Sinh", "Cosh", "Asinh", "Identity", "Elu", "Selu", "Celu",
    "LeakyRelu", "HardSigmoid", "ThresholdedRelu", "Shrink", "Gelu", "IsNaN", "IsInf", "Dropout", "Size", "Shape",
]  # fmt: skip

CASES = [
    *[case(name, real(3, 4) * 10) for name in UNARY],
    *[case(name, positive(3, 4)) for name in ("Sqrt", "Log", "Reciprocal")],
    *[case(name, real(3, 4) / 3) for name in ("Asin", "Acos", "Atanh")],
    case("Acosh", positive(3, 4) + 1),
    case("Not", truth(3, 4)),
    case("BitwiseNot", whole(3, 4)),
    *[case(name, real(3, 4), real(2, 1, 4)) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")],
    *[case(name, real(3, 4), constants=[np.array(0.7, F32)]) for name in ("Add", "Sub", "Mul", "Div", "Pow")
      if name != "Pow"],
    *[case(name, real(3, 4), constants=[np.array(2.5, F32)], reorder=(1, 0)) for name in ("Sub", "Div", "Pow")],
    case("Div", whole(3, 4), np.full((3, 4), 3)),
    case("Div", whole(3, 4), constants=[np.array(-2)]),
    case("Mod", whole(3, 4), np.full((3, 4), -3)),
    case("Mod", whole(3, 4), np.full((3, 4), -3), fmod=1),
    case("Mod", real(3, 4), positive(3, 4), fmod=1),
    case("Pow", positive(3, 4), real(3, 4)),
    case("Pow", real(3, 4), constants=[np.array(2.0, F32)]),
    case("Pow", real(3, 4), constants=[np.array(3, I64)]),
    *[case(name, whole(3, 4), whole(4)) for name in ("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual")],
    case("Greater", real(3, 4), constants=[np.array(0.5, F32)]),
    *[case(name, truth(3, 4), truth(3, 1)) for name in ("And", "Or", "Xor")],
    *[case(name, whole(3, 4), whole(4)) for name in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")],
    case("BitShift", whole(4, low=0, high=9, dtype=np.uint8), np.array([0, 1, 2, 3], np.uint8), direction="LEFT"),
    case("IsInf", np.array([np.inf, -np.inf, 1], F32), detect_negative=0),
    case("Clip", real(3, 4)),
    case("Clip", real(3, 4), constants=[np.array(-0.5, F32), np.array(0.5, F32)]),
    case("Clip", real(3, 4), constants=[None, np.array(0.5, F32)]),
    case("Clip", real(3, 4), np.array(-0.5, F32)),
    case("Clip", real(3, 4), min=-0.5, max=0.25, opset=10),
    case("Clip", whole(3, 4, dtype=np.int8), constants=[np.array(-2, np.int8), np.array(2, np.int8)]),
    case("LeakyRelu", real(3, 4), alpha=0.3),
    case("Elu", real(3, 4), alpha=0.5),
    case("HardSigmoid", real(3, 4) * 3, alpha=1 / 6, beta=0.5),
    case("Gelu", real(3, 4), approximate="tanh"),
    case("PRelu", IMAGE, constants=[real(4, 1, 1)]),
    case("PRelu", IMAGE, constants=[real(1)]),
    case("PRelu", IMAGE, constants=[real(6)]),
    case("CumSum", real(3, 4), constants=[np.array(1)]),
    case("CumSum", real(3, 4), constants=[np.array(-2)], exclusive=1, reverse=1),
    # convolutions
    case("Conv", IMAGE, constants=[real(5, 4, 3, 3), real(5)]),
    case("Conv", IMAGE, constants=[real(5, 4, 3, 2)], strides=[2, 1], pads=[1, 0, 2, 1], dilations=[2, 1]),
    case("Conv", IMAGE, constants=[real(8, 1, 3, 3), real(8)], group=4, pads=[1, 1, 1, 1]),
    case("Conv", IMAGE, constants=[real(5, 4, 4, 3)], auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv", IMAGE, constants=[real(5, 4, 4, 3)], auto_pad="SAME_LOWER", strides=[2, 3]),
    case("Conv", IMAGE, constants=[real(5, 4, 4, 3)], auto_pad="VALID", strides=[2, 2]),
    case("Conv", real(2, 3, 9), constants=[real(4, 3, 3), real(4)], pads=[1, 1], strides=[2]),
    case("Conv", real(1, 2, 4, 5, 6), constants=[real(3, 2, 2, 3, 3)], pads=[0, 1, 1, 0, 1, 1]),
    case("ConvTranspose", IMAGE, constants=[real(4, 3, 3, 3), real(3)]),
    case("ConvTranspose", IMAGE, constants=[real(4, 3, 3, 3), real(3)], strides=[2, 2], pads=[1, 1, 1, 1],
         output_padding=[1, 1]),
    case("ConvTranspose", IMAGE, constants=[real(4, 3, 3, 3), real(6)], strides=[2, 3], pads=[0, 1, 1, 2], group=2),
    case("ConvTranspose", IMAGE, constants=[real(4, 3, 3, 3)], strides=[2, 2], output_shape=[15, 12]),
    case("ConvTranspose", IMAGE, constants=[real(4, 3, 3, 3)], strides=[2, 2], auto_pad="SAME_UPPER"),
    case("ConvTranspose", IMAGE, constants=[real(4, 3, 3, 3)], strides=[2, 2], auto_pad="SAME_LOWER"),
    case("ConvTranspose", real(2, 3, 9), constants=[real(3, 4, 3), real(4)], dilations=[2], strides=[2]),
    # products
    case("Gemm", real(3, 4), constants=[real(5, 4), real(5)], transB=1),
    case("Gemm", real(4, 3), constants=[real(4, 5), real(3, 1)], transA=1, alpha=0.5, beta=2.0),
    case("Gemm", real(3, 4), constants=[real(4, 5)]),
    case("MatMul", real(3, 4), real(4, 5)),
    case("MatMul", real(2, 3, 4), real(4)),
    case("MatMul", real(2, 1, 3, 4), real(5, 4, 2)),
    case("Einsum", real(2, 3, 4), real(2, 4, 5), equation="bij,bjk->bik"),
    # pools
    *[case("MaxPool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], **more) for more in (
        {}, {"pads": [1, 1, 1, 1]}, {"pads": [0, 1, 1, 0]}, {"ceil_mode": 1}, {"ceil_mode": 1, "pads": [1, 1, 1, 1]},
        {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"}, {"dilations": [2, 1]}, {"pads": [2, 2, 2, 2]})],
    case("MaxPool", whole(1, 2, 6, 6, dtype=np.int8), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    *[case("AveragePool", IMAGE, kernel_shape=[3, 3], strides=[2, 2], **more) for more in (
        {}, {"pads": [1, 1, 1, 1]}, {"pads": [1, 1, 1, 1], "count_include_pad": 1}, {"pads": [0, 1, 1, 0]},
        {"pads": [0, 1, 1, 0], "count_include_pad": 1}, {"ceil_mode": 1}, {"ceil_mode": 1, "pads": [1, 1, 1, 1]},
        {"ceil_mode": 1, "pads": [1, 1, 1, 1], "count_include_pad": 1}, {"auto_pad": "SAME_UPPER"})],
    case("MaxPool", real(1, 2, 9), kernel_shape=[2], strides=[2]),
    case("AveragePool", real(1, 2, 9), kernel_shape=[2], strides=[2]),
    case("MaxPool", real(1, 2, 5, 6, 7), kernel_shape=[2, 2, 2]),
    case("GlobalAveragePool", IMAGE),
    case("GlobalMaxPool", IMAGE),
    # normalization
    case("BatchNormalization", IMAGE, constants=[real(4), real(4), real(4), positive(4)], epsilon=0.5),
    case("LayerNormalization", real(2, 3, 4), constants=[real(4), real(4)], epsilon=0.5),
    case("LayerNormalization", real(2, 3, 4), constants=[real(3, 4)], axis=1),
    case("RMSNormalization", real(2, 3, 4), constants=[real(4)], epsilon=0.5, opset=23),
    case("GroupNormalization", IMAGE, constants=[real(4), real(4)], num_groups=2, epsilon=0.5, opset=21),
    case("InstanceNormalization", IMAGE, constants=[real(4), real(4)], epsilon=0.5),
    case("LpNormalization", real(3, 4), axis=0, p=1),
    case("LRN", IMAGE, size=3, alpha=0.1, beta=0.5, bias=2.0),
    *[case(name, real(2, 3, 4), **more) for name in ("Softmax", "LogSoftmax") for more in (
        {}, {"axis": 1}, {"opset": 11}, {"axis": 2, "opset": 11}, {"axis": 0, "opset": 11})],
    # attention
    case("Attention", real(2, 4, 5, 8), real(2, 2, 6, 8) / 2, real(2, 2, 6, 3), opset=23, scale=0.5),
    case("Attention", real(2, 4, 5, 8), real(2, 4, 5, 8) / 2, real(2, 4, 5, 8), opset=23, is_causal=1),
    case("Attention", real(2, 5, 32), real(2, 6, 32) / 2, real(2, 6, 32), real(5, 6), opset=23, q_num_heads=4,
         kv_num_heads=4),
    case("Attention", real(2, 4, 5, 8), real(2, 4, 5, 8) / 2, real(2, 4, 5, 8), truth(5, 5) | np.eye(5, dtype=bool),
         opset=23, is_causal=1),
    case("RotaryEmbedding", real(2, 4, 5, 8), real(2, 5, 4), real(2, 5, 4) / 3, opset=23),
    case("RotaryEmbedding", real(2, 5, 32), real(9, 2), real(9, 2) / 3, whole(2, 5, low=0, high=9), opset=23,
         num_heads=4, interleaved=1, rotary_embedding_dim=4),
    case("MeanVarianceNormalization", IMAGE),
    # reductions
    *[case(name, positive(2, 3, 4), **more) for name in ("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp",
        "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSumSquare") for more in (
        {}, {"constants": [ints(0, -1)], "keepdims": 0})],
    case("ReduceSum", whole(2, 3, 4)),
    case("ReduceSum", real(2, 3, 4), constants=[ints(1)]),
    case("ReduceSum", real(2, 3, 4), constants=[None], noop_with_empty_axes=1),
    case("ReduceMean", real(2, 3, 4), axes=[1, 2], keepdims=0, opset=13),
    case("ReduceSum", real(2, 3, 4), axes=[1], opset=11),
    case("ArgMax", whole(3, 4), axis=1),
    case("ArgMax", whole(3, 9, high=-2), axis=1, keepdims=0, select_last_index=1),
    case("ArgMin", whole(3, 9, high=-2), axis=0),
    case("TopK", real(3, 8), constants=[ints(3)], results=2),
    case("TopK", real(3, 8), constants=[ints(3)], axis=0, largest=0, results=2),
    # layout
    case("Cast", real(3, 4) * 10, to=onnx.TensorProto.INT64),
    case("Cast", whole(3, 4), to=onnx.TensorProto.FLOAT),
    case("Cast", real(3, 4), to=onnx.TensorProto.BOOL),
    case("CastLike", whole(3, 4), real(1)),
    case("Reshape", real(2, 3, 4), constants=[ints(0, -1)]),
    case("Reshape", real(2, 3, 4), constants=[ints(4, 3, 2)]),
    case("Flatten", real(2, 3, 4)),
    case("Flatten", real(2, 3, 4), axis=0),
    case("Flatten", real(2, 3, 4), axis=-1),
    case("Transpose", real(2, 3, 4)),
    case("Transpose", real(2, 3, 4), perm=[1, 0, 2]),
    case("Unsqueeze", real(2, 3), constants=[ints(0, -1)]),
    case("Unsqueeze", real(2, 3), axes=[1, 3], opset=11),
    case("Squeeze", real(1, 3, 1), constants=[ints(0)]),
    case("Squeeze", real(1, 3, 1)),
    case("Squeeze", real(1, 3, 1), axes=[-1], opset=11),
    case("Expand", real(3, 1), constants=[ints(2, 1, 4)]),
    case("Expand", real(2, 3, 1), constants=[ints(3, 4)]),
    case("Tile", real(2, 3), constants=[ints(2, 3)]),
    case("Concat", real(2, 3), real(2, 2), axis=-1),
    case("Split", real(2, 7), constants=[ints(2, 5)], axis=1, results=2),
    case("Split", real(7, 2), num_outputs=3, results=3),
    case("Split", real(6, 2), results=3, opset=13),
    case("Split", real(2, 7), axis=1, split=[3, 4], results=2, opset=11),
    case("Slice", real(5, 6), constants=[ints(1, -3), ints(4, 1000)]),
    case("Slice", real(5, 6), constants=[ints(1), ints(-1), ints(-1), ints(2)]),
    case("Slice", real(5, 6), constants=[ints(-1), ints(-(2**62)), ints(1), ints(-1)]),
    case("Slice", real(5, 6), constants=[ints(100, 3), ints(0, -5), ints(1, 0), ints(-2, -1)]),
    case("Slice", real(5, 6), starts=[1], ends=[3], axes=[1], opset=9),
    case("Gather", real(5, 6), whole(2, 3, low=-5, high=5)),
    case("Gather", real(5, 6), whole(2, low=-6, high=6), axis=1),
    case("Gather", real(5, 6), constants=[np.array(-2)], axis=1),
    case("Gather", real(2, 5, 6), constants=[ints(0, -1, 2)], axis=-2),
    case("Gather", whole(3, 2, low=0, high=5), constants=[real(5, 6)], reorder=(1, 0)),
    case("GatherElements", real(3, 4), whole(3, 2, low=-4, high=4), axis=1),
    case("GatherND", real(3, 4, 5), whole(2, 2, low=0, high=3)),
    case("GatherND", real(3, 4, 5), whole(3, 2, 1, low=0, high=4), batch_dims=1),
    case("ScatterElements", real(3, 4), np.array([[0, -1], [1, 2], [3, 0]]), real(3, 2), axis=1),
    case("ScatterND", real(4, 3), np.array([[0], [2]]), real(2, 3)),
    case("ScatterND", real(4, 3), np.array([[1], [1]]), real(2, 3), reduction="add"),
    *[case("Pad", SMALL, constants=[ints(0, 0, 1, 2, 0, 0, 3, 1)], mode=mode) for mode in
      ("constant", "reflect", "edge", "wrap")],
    case("Pad", SMALL, constants=[ints(0, 0, -1, 2, 0, 0, 1, -1), np.array(1.5, F32)]),
    case("Pad", SMALL, constants=[ints(1, 2), None, ints(-1)]),
    case("Pad", SMALL, pads=[0, 0, 1, 2, 0, 0, 3, 1], value=2.0, opset=10),
    case("DepthToSpace", real(1, 8, 2, 3), blocksize=2),
    case("DepthToSpace", real(1, 8, 2, 3), blocksize=2, mode="CRD"),
    case("SpaceToDepth", real(1, 2, 4, 6), blocksize=2),
    case("Trilu", real(4, 5)),
    case("Trilu", real(4, 5), constants=[np.array(-1)], upper=0),
    case("EyeLike", real(3, 4), k=1),
    case("OneHot", ints(0, -1, 2), constants=[np.array(4), np.array([0.5, 2], F32)]),
    case("OneHot", whole(2, 3, low=0, high=4), constants=[np.array(4), np.array([0.5, 2], F32)], axis=1),
    case("Where", truth(3, 4), real(3, 4), real(4)),
    case("Where", truth(3, 4), real(3, 4), constants=[np.array(-9, F32)]),
    # resize
    *[case("Resize", SMALL, constants=[None, np.array(scales, F32)], mode=mode, coordinate_transformation_mode=how,
           **({"nearest_mode": near} if mode == "nearest" else {}), close=2e-4)
      for scales in ([1, 1, 2, 3], [1, 1, 1.6, 0.65]) for how in ("half_pixel", "align_corners", "asymmetric",
      "pytorch_half_pixel", "half_pixel_symmetric") for mode, near in (("linear", ""), ("nearest", "floor"),
      ("nearest", "round_prefer_floor"), ("nearest", "round_prefer_ceil"), ("nearest", "ceil"), ("cubic", ""))
      if (how, near) not in TIES],
    case("Resize", SMALL, constants=[None, None, ints(1, 2, 7, 9)], mode="linear"),
    case("Resize", SMALL, constants=[None, None, ints(7, 9)], mode="nearest", axes=[2, 3]),
    case("Resize", SMALL, constants=[None, np.array([1, 1, 2, 2], F32)], mode="cubic", exclude_outside=1,
         cubic_coeff_a=-0.5),
    case("Resize", SMALL, constants=[np.array([1, 1, 2, 2], F32)], mode="linear", opset=10),
    case("Upsample", SMALL, constants=[np.array([1, 1, 2, 3], F32)], mode="nearest", opset=9),
    case("Upsample", SMALL, constants=[np.array([1, 1, 2, 3], F32)], mode="linear", opset=9),
    # recurrent: x, w, r, b
    case("LSTM", real(3, 2, 3), constants=[real(1, 16, 3), real(1, 16, 4), real(1, 32)], hidden_size=4, results=3),
    case("LSTM", real(3, 2, 3), constants=[real(2, 16, 3), real(2, 16, 4)], hidden_size=4, direction="bidirectional",
         results=3),
    case("LSTM", real(3, 2, 3), constants=[real(1, 16, 3), real(1, 16, 4), None, None, real(1, 2, 4), real(1, 2, 4)],
         hidden_size=4, results=1),
    case("GRU", real(3, 2, 3), constants=[real(1, 12, 3), real(1, 12, 4), real(1, 24)], hidden_size=4,
         linear_before_reset=1, results=2),
    case("RNN", real(3, 2, 3), constants=[real(1, 4, 3), real(1, 4, 4), real(1, 8)], hidden_size=4, results=2),
    # quantized
    case("QuantizeLinear", real(3, 4) * 20, constants=[np.array(0.25, F32), np.array(-7, np.int8)]),
    case("QuantizeLinear", real(3, 4) * 20, constants=[np.array(0.25, F32), np.array(130, np.uint8)]),
    case("QuantizeLinear", real(3, 4) * 20, constants=[np.array(0.25, F32)]),
    case("QuantizeLinear", real(3, 4) * 20, constants=[positive(4), whole(4, dtype=np.int8)], axis=-1),
    case("DequantizeLinear", whole(3, 4, dtype=np.int8), constants=[np.array(0.3, F32), np.array(-7, np.int8)]),
    case("DequantizeLinear", whole(3, 4, dtype=np.int8), constants=[positive(3), whole(3, dtype=np.int8)], axis=0),
    case("DequantizeLinear", whole(3, 4, dtype=np.int32), constants=[positive(4)]),
    case("DequantizeLinear", whole(3, 8, dtype=np.int8), constants=[positive(3, 2)], block_size=4, axis=1, opset=21),
    case("DequantizeLinear", whole(8, 3, dtype=np.int8), constants=[positive(2, 3)], block_size=4, axis=0, opset=21),
    case("DynamicQuantizeLinear", real(3, 4), results=3),
    case("ConvInteger", whole(1, 2, 6, 6, low=0, high=250, dtype=np.uint8),
         constants=[whole(3, 2, 3, 3, low=-120, high=120, dtype=np.int8), np.array(131, np.uint8)], pads=[1, 1, 1, 1]),
    case("ConvInteger", whole(1, 2, 6, 6, low=0, high=250, dtype=np.uint8),
         constants=[whole(3, 2, 3, 3, low=0, high=250, dtype=np.uint8), np.array(131, np.uint8),
                    np.array(128, np.uint8)], pads=[0, 1, 2, 0], strides=[2, 2]),
    case("MatMulInteger", whole(2, 3, 4, low=0, high=250, dtype=np.uint8),
         constants=[whole(4, 5, low=-120, high=120, dtype=np.int8), np.array(131, np.uint8)]),
    case("QLinearConv", whole(1, 2, 6, 6, low=0, high=250, dtype=np.uint8),
         constants=[np.array(0.02, F32), np.array(131, np.uint8), whole(3, 2, 3, 3, low=-120, high=120, dtype=np.int8),
                    positive(3) / 100, np.zeros(3, np.int8), np.array(0.5, F32), np.array(120, np.uint8),
                    whole(3, low=-900, high=900, dtype=np.int32)], pads=[1, 1, 1, 1]),
    case("QLinearMatMul", whole(3, 4, low=0, high=250, dtype=np.uint8),
         constants=[np.array(0.02, F32), np.array(131, np.uint8), whole(4, 5, low=-120, high=120, dtype=np.int8),
                    np.array(0.01, F32), np.array(0, np.int8), np.array(0.05, F32), np.array(120, np.uint8)]),
]  # fmt: skip


def model_of(case: Case) -> onnx.ModelProto:
    names, initializers = [f"x{i}" for i in range(len(case.inputs))], []
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in zip(names, case.inputs, strict=True)
    ]
    for index, value in enumerate(case.constants):
        names.append("" if value is None else f"c{index}")
        if value is not None:
            initializers.append(numpy_helper.from_array(value, f"c{index}"))
    names = names if case.reorder is None else [names[i] for i in case.reorder]
    results = [f"y{i}" for i in range(case.results)]
    node = helper.make_node(case.operator, names, results, "the/node", **case.attributes)
    outputs = [helper.make_empty_tensor_value_info(name) for name in results]
    graph = helper.make_graph([node], "one_node", given, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=9)
    inferred = onnx.shape_inference.infer_shapes(model)
    for output in inferred.graph.output:
        if not output.type.tensor_type.HasField("shape"):  # no inference rule: group normalization keeps the type
            output.type.CopyFrom(inferred.graph.input[0].type)
    return inferred


def run_onnxruntime(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]).run(None, inputs)


def tensors(case: Case) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(np.array(value)) for value in case.inputs)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_onnxruntime(case: Case) -> None:
    model = model_of(case)
    expected = run_onnxruntime(model, {f"x{i}": value for i, value in enumerate(case.inputs)})
    results = frontend.load(model)(*tensors(case))
    for got, want in zip(results if case.results > 1 else [results], expected, strict=True):
        assert got.numpy().dtype == want.dtype
        np.testing.assert_allclose(got.numpy(), want, rtol=case.close, atol=case.close)


class AllCases(torch.nn.Module):
    """Every case beside every other: one capture is quicker than hundreds."""

    def __init__(self) -> None:
        super().__init__()
        self.cases = torch.nn.ModuleList(frontend.load(model_of(case)) for case in CASES)

    def forward(self, inputs: list[tuple[torch.Tensor, ...]]) -> list[Any]:
        return [module(*values) for module, values in zip(self.cases, inputs, strict=True)]


def test_every_operator_is_captured() -> None:
    inputs = [tensors(case) for case in CASES]
    module = AllCases()
    graph = capture(module, (inputs,))
    for case, got, want in zip(CASES, graph.run(inputs), module(inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, msg=lambda text, case=case: f"{case}: {text}")
    strays = {node.meta["path"].split(".")[1] for node in graph.calls if not node.meta["path"].endswith(".the/node")}
    # The results of Shape and Size are sizes inside the model, tensors only outside.
    assert {CASES[int(index)].operator for index in strays} == {"Shape", "Size"}
