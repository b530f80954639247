"""Activation functions, and batch normalization by stored statistics."""

from __future__ import annotations

import math
from typing import Any

from torch import fx
from tvm.tirx.script import builder as T

from graphc.backends.tvm import mathematics as m
from graphc.backends.tvm import scalars
from graphc.backends.tvm.evaluate import At, broadcast, constant, index_function
from graphc.backends.tvm.kernel import Expr, Index
from graphc.backends.tvm.operations import type_of
from graphc.backends.tvm.pointwise import POINTWISE, pointwise


@pointwise("aten.gelu.default", raw=("approximate",))
def _gelu(self: Expr, approximate: str) -> Expr:
    if approximate == "tanh":
        return self * 0.5 * (1.0 + m.tanh(math.sqrt(2 / math.pi) * (self + 0.044715 * self * self * self)))
    return self * 0.5 * (1.0 + m.erf(self * math.sqrt(0.5)))


@pointwise("aten.hardtanh.default")
def _hardtanh(self: Expr, min_val: Expr, max_val: Expr) -> Expr:
    return scalars.minimum(max_val, scalars.maximum(min_val, self))


@pointwise("aten.relu6.default")
def _relu6(self: Expr) -> Expr:
    return _hardtanh(self, constant(0, str(self.ty.dtype)), constant(6, str(self.ty.dtype)))


@pointwise("aten.hardswish.default")
def _hardswish(self: Expr) -> Expr:
    return self * _relu6(self + 3.0) / 6.0


@pointwise("aten.hardsigmoid.default")
def _hardsigmoid(self: Expr) -> Expr:
    return _relu6(self + 3.0) / 6.0


@pointwise("aten.leaky_relu.default")
def _leaky_relu(self: Expr, negative_slope: Expr) -> Expr:
    return T.Select(self > 0.0, self, self * negative_slope)


@pointwise("aten.elu.default")
def _elu(self: Expr, alpha: Expr, scale: Expr, input_scale: Expr) -> Expr:
    return T.Select(self > 0.0, self, alpha * m.expm1(self * input_scale)) * scale


@pointwise("aten.softplus.default")
def _softplus(self: Expr, beta: Expr, threshold: Expr) -> Expr:
    scaled = self * beta
    return T.Select(scaled > threshold, self, m.log1p(m.exp(scalars.minimum(threshold, scaled))) / beta)


@pointwise("aten.clamp.default")
def _clamp(self: Expr, min: Expr | None, max: Expr | None) -> Expr:
    if min is not None:
        self = scalars.maximum(min, self)
    return self if max is None else scalars.minimum(max, self)


pointwise("aten.clamp.Tensor")(_clamp)


@pointwise("aten.clamp_min.default")
def _clamp_min(self: Expr, min: Expr) -> Expr:
    return _clamp(self, min, None)


@pointwise("aten.clamp_max.default")
def _clamp_max(self: Expr, max: Expr) -> Expr:
    return _clamp(self, None, max)


@index_function("aten._prelu_kernel.default", "aten.prelu.default")
def _prelu(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    weight = args["weight"]
    shape = type_of(weight).shape
    along = [index[1]] if len(shape) == 1 and shape[0] != 1 and len(index) > 1 else broadcast(index, weight)
    x = at(args["self"], index)
    return T.Select(x > 0.0, x, x * at(weight, along))


POINTWISE.update(dict.fromkeys(("aten._prelu_kernel.default", "aten.prelu.default")))


@index_function("aten.batch_norm.default", "aten._native_batch_norm_legit_no_training.default#0")
def _batch_norm(at: At, args: dict[str, Any], index: Index, node: fx.Node) -> Expr:
    channel = [index[1]]
    mean, variance = at(args["running_mean"], channel), at(args["running_var"], channel)
    value = (at(args["input"], index) - mean) * (1.0 / T.sqrt(variance + T.float32(args["eps"])))
    value = value if args["weight"] is None else value * at(args["weight"], channel)
    return value if args["bias"] is None else value + at(args["bias"], channel)
