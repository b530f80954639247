"""Operators that torch.onnx does not write as graphc wants them: their form in ONNX, as functions for torch.export.

Each form takes the result's shape (empty for several results), then the operator's own arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import onnx
import torch
from torch import Tensor
from torch.onnx.ops import symbolic, symbolic_multi_out

from graphc.exporters.onnx_functions import DOMAIN, VERSION
from graphc.operators.quantization import along, integer_dtype

_CODES = {
    torch.int8: onnx.TensorProto.INT8,
    torch.uint8: onnx.TensorProto.UINT8,
    torch.int32: onnx.TensorProto.INT32,
}


def _quantize(
    shape: list[Any], x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None, qmin: int, qmax: int
) -> Tensor:
    dtype = integer_dtype(qmin, qmax)
    if dtype is torch.int32:  # beyond QuantizeLinear: its formula written out
        steps = torch.round(x / along(scale, axis, x.dim())).clamp(-(2.0**30), 2.0**30).to(torch.int32)
        return (steps + along(zero_point, axis, x.dim())).clamp(qmin, qmax)
    inputs = (x, scale, zero_point.to(dtype))
    q = symbolic("QuantizeLinear", inputs, _axis(axis), dtype=dtype, shape=shape)
    limits = torch.iinfo(dtype)
    return q if (qmin, qmax) == (limits.min, limits.max) else q.clamp(qmin, qmax)


def _dequantize(shape: list[Any], q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    if q.dtype is torch.int32:  # where DequantizeLinear takes no zero point
        return (q - along(zero_point, axis, q.dim())).to(torch.float32) * along(scale, axis, q.dim())
    inputs = (q, scale, zero_point.to(q.dtype))
    return symbolic("DequantizeLinear", inputs, _axis(axis), dtype=torch.float32, shape=shape)


def _axis(axis: int | None) -> dict[str, Any]:
    return {} if axis is None else {"axis": axis}


def _rescale(
    shape: list[Any],
    x: Tensor,
    multiplier: Tensor,
    shift: Tensor,
    input_zero: int,
    output_zero: int,
    axis: int | None,
    qmin: int,
    qmax: int,
) -> Tensor:
    dtype = integer_dtype(qmin, qmax)
    attributes: dict[str, Any] = {
        "channels": _channels(axis, x.dim()),
        "input_zero": input_zero,
        "output_zero": output_zero,
        "qmin": qmin,
        "qmax": qmax,
        "to": int(_CODES[dtype]),
    }
    return symbolic(f"{DOMAIN}::rescale", (x, multiplier, shift), attributes, dtype=dtype, shape=shape, version=VERSION)


def _channels(axis: int | None, rank: int) -> list[int]:
    """The shape in which a parameter of channels broadcasts along `axis`, for ONNX's Reshape."""
    return [1] if axis is None else [-1 if i == axis % rank else 1 for i in range(rank)]


def _integer(name: str, inputs: Sequence[Tensor], shape: list[Any], x_zero: int, **attributes: Any) -> Tensor:
    attributes |= {"x_zero": x_zero, "lift": 128 if inputs[0].dtype is torch.int8 else 0}
    return symbolic(f"{DOMAIN}::{name}", inputs, attributes, dtype=torch.int32, shape=shape, version=VERSION)


def _integer_convolution(
    shape: list[Any],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    x_zero: int,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    window = {"strides": stride, "pads": [*padding, *padding], "dilations": dilation, "group": groups}
    inputs = (x, weight, _bias(bias, weight))
    return _integer("integer_convolution", inputs, shape, x_zero, channels=_channels(1, x.dim()), **window)


def _integer_linear(shape: list[Any], x: Tensor, weight: Tensor, bias: Tensor | None, x_zero: int) -> Tensor:
    return _integer("integer_linear", (x, weight, _bias(bias, weight)), shape, x_zero)


def _bias(bias: Tensor | None, weight: Tensor) -> Tensor:
    return torch.zeros(weight.shape[0], dtype=torch.int32) if bias is None else bias


def _integer_sum_pool2d(
    shape: list[Any], x: Tensor, x_zero: int, kernel: list[int], stride: list[int], padding: list[int]
) -> Tensor:
    ones = torch.ones([x.shape[1], 1, *kernel], dtype=torch.uint8)
    window = {"strides": stride, "pads": [*padding, *padding], "group": x.shape[1]}
    return _integer("integer_sum_pool2d", (x, ones), shape, x_zero, **window)


def _unpack(shape: list[Any], packed: Tensor, bits: int, count: int) -> Tensor:
    attributes: dict[str, Any] = {"bits": bits, "count": count, "last": packed.shape[-1] - 1, "radix": 2**bits}
    return symbolic(f"{DOMAIN}::unpack", (packed,), attributes, dtype=torch.uint8, shape=shape, version=VERSION)


def _grouping(rank: int, group: int) -> dict[str, Any]:
    """The shapes with groups apart and together, for ONNX's Reshape: 0 keeps a size."""
    return {"split": [*[0] * (rank - 1), -1, group], "joined": [*[0] * (rank - 1), -1]}


def _dequantize_groups(shape: list[Any], q: Tensor, scale: Tensor, zero_point: Tensor | None, group: int) -> Tensor:
    inputs = (q, scale, torch.zeros((), dtype=q.dtype) if zero_point is None else zero_point)
    attributes = _grouping(q.dim(), group)
    return symbolic(
        f"{DOMAIN}::dequantize_groups", inputs, attributes, dtype=torch.float32, shape=shape, version=VERSION
    )


def _quantize_dynamic(shape: list[Any], x: Tensor, group: int) -> tuple[Tensor, ...]:
    return tuple(
        symbolic_multi_out(
            f"{DOMAIN}::quantize_dynamic",
            (x,),
            _grouping(x.dim(), group),
            dtypes=(torch.int8, torch.float32),
            shapes=(x.shape, [*x.shape[:-1], x.shape[-1] // group]),
            version=VERSION,
        )
    )


def _function(op: str, inputs: Sequence[Tensor], result: list[Any], **attributes: Any) -> Tensor:
    return symbolic(f"{DOMAIN}::{op}", inputs, attributes, dtype=torch.float32, shape=result, version=VERSION)


def _lookup(shape: list[Any], indices: Tensor, codebook: Tensor) -> Tensor:
    *spaces, codewords, d = codebook.shape
    runs = indices.shape[-1] // spaces[0] if spaces else 0
    first = [space * codewords for space in range(spaces[0]) for _ in range(runs)] if spaces else [0]
    joined = [*[0] * (indices.dim() - 1), -1]
    return _function("lookup", (indices, codebook), shape, joined=joined, first=first, words=[-1, d])


def _partial_products(shape: list[Any], x: Tensor, codebook: Tensor) -> Tensor:
    *spaces, codewords, d = codebook.shape
    outer, columns = [0] * (x.dim() - 1), [*range(len(spaces)), len(spaces) + 1, len(spaces)]
    split, joined = [*outer, *spaces, -1, d], [*outer, -1, codewords]
    return _function("partial_products", (x, codebook), shape, split=split, columns=columns, joined=joined)


def _gather_sum(shape: list[Any], tables: Tensor, indices: Tensor) -> Tensor:
    return _function("gather_sum", (tables, indices), shape)


def _expand_2_4(shape: list[Any], values: Tensor, positions: Tensor) -> Tensor:
    outer = [0] * (values.dim() - 1)
    return _function("expand_2_4", (values, positions), shape, split=[*outer, -1, 2, 4], joined=[*outer, -1])


def _expand_blocks(shape: list[Any], values: Tensor, mask: Tensor) -> Tensor:
    return _function("expand_blocks", (values, mask), shape, grid=[*mask.shape, *values.shape[1:]], shape=shape)


def _expand_gaps(shape: list[Any], values: Tensor, gaps: Tensor, rows: int, columns: int) -> Tensor:
    return _function("expand_gaps", (values, gaps), shape, flat=[rows * columns], shape=[rows, columns])


def _view(shape: list[Any], x: Tensor, sizes: list[Any]) -> Tensor:
    """A view in the Graph is one of values; here torch's strides must not matter."""
    return x.reshape(sizes)


def _split(shape: list[Any], x: Tensor, sizes: Any, axis: int = 0) -> tuple[Tensor, ...]:
    """By slices: torch.onnx would make an ONNX sequence."""
    if not isinstance(sizes, list | tuple):
        count = -(-x.shape[axis] // sizes)
        sizes = [sizes] * (count - 1) + [x.shape[axis] - sizes * (count - 1)]
    starts = list(accumulate(sizes, initial=0))
    return tuple(x.narrow(axis, start, size) for start, size in zip(starts, sizes, strict=False))


def _unbind(shape: list[Any], x: Tensor, axis: int = 0) -> tuple[Tensor, ...]:
    return tuple(x.select(axis, index) for index in range(x.shape[axis]))


FORMS: dict[Any, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    torch.ops.aten.view.default: _view,
    torch.ops.aten.split.Tensor: _split,
    torch.ops.aten.split_with_sizes.default: _split,
    torch.ops.aten.unbind.int: _unbind,
    torch.ops.graphc.quantize.default: _quantize,
    torch.ops.graphc.dequantize.default: _dequantize,
    torch.ops.graphc.rescale.default: _rescale,
    torch.ops.graphc.integer_convolution.default: _integer_convolution,
    torch.ops.graphc.integer_linear.default: _integer_linear,
    torch.ops.graphc.integer_sum_pool2d.default: _integer_sum_pool2d,
    torch.ops.graphc.unpack.default: _unpack,
    torch.ops.graphc.dequantize_groups.default: _dequantize_groups,
    torch.ops.graphc.quantize_dynamic.default: _quantize_dynamic,
    torch.ops.graphc.lookup.default: _lookup,
    torch.ops.graphc.partial_products.default: _partial_products,
    torch.ops.graphc.gather_sum.default: _gather_sum,
    torch.ops.graphc.expand_2_4.default: _expand_2_4,
    torch.ops.graphc.expand_blocks.default: _expand_blocks,
    torch.ops.graphc.expand_gaps.default: _expand_gaps,
}
