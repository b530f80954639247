"""ONNX operators that read or write at indices; each over torch tensors. Negative indices count from the end."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from graphc.frontends.onnx.operator import Known, Value, operator


@operator("Gather")
def gather(x: Tensor, indices: Value, /, *, axis: int = 0) -> Tensor:
    if isinstance(indices, np.ndarray):
        if indices.ndim == 0:
            return x.select(axis, indices.item())
        # Sizes as indices would specialize; a known index may be negative, index_select's may not.
        wrapped = torch.tensor([index % int(x.shape[axis]) if index < 0 else index for index in indices.flat])
        return x.index_select(axis, wrapped).reshape(
            *x.shape[: axis % x.dim()], *indices.shape, *x.shape[axis % x.dim() + 1 :]
        )
    if x.dim() == 2 and axis == 0 and isinstance(x, torch.nn.Parameter):
        return torch.nn.functional.embedding(indices, x)
    return x[(slice(None),) * (axis % x.dim()) + (indices,)]


def _positive(indices: Tensor, size: int) -> Tensor:
    return torch.where(indices < 0, indices + size, indices)


@operator("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, /, *, axis: int = 0) -> Tensor:
    return x.gather(axis, _positive(indices, x.shape[axis]).long())


@operator("GatherND")
def gather_nd(x: Tensor, indices: Tensor, /, *, batch_dims: int = 0) -> Tensor:
    leading = [
        torch.arange(x.shape[axis]).reshape([-1 if i == axis else 1 for i in range(indices.dim() - 1)])
        for axis in range(batch_dims)
    ]
    return x[(*leading, *indices.unbind(-1))]


@operator("ScatterElements", "Scatter")
def scatter_elements(
    x: Tensor, indices: Tensor, updates: Tensor, /, *, axis: int = 0, reduction: Literal["none", "add"] = "none"
) -> Tensor:
    scatter = x.scatter_add if reduction == "add" else x.scatter
    return scatter(axis, _positive(indices, x.shape[axis]).long(), updates)


@operator("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, /, *, reduction: Literal["none", "add"] = "none") -> Tensor:
    return x.index_put(tuple(indices.unbind(-1)), updates, accumulate=reduction == "add")


@operator("OneHot")
def one_hot(indices: Tensor, depth: Known, values: Tensor, /, *, axis: int = -1) -> Tensor:
    size = int(depth.item())
    axis = axis if axis >= 0 else axis + indices.dim() + 1
    classes = torch.arange(size).reshape([size] + [1] * (indices.dim() - axis))
    wrapped = _positive(indices, size).unsqueeze(axis)
    return torch.where(wrapped == classes, values[1], values[0])
