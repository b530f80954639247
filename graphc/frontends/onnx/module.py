"""An ONNX model as a torch.nn.Module, so that ONNX and PyTorch take one road: torch.export."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from graphc.errors import CaptureError, GraphcError, Unsupported, UnsupportedOperatorError
from graphc.frontends.onnx.layout import TORCH_DTYPES
from graphc.frontends.onnx.operator import (
    KNOWN_OPERATORS,
    OPERATORS,
    Known,
    Operand,
    UnsupportedAttribute,
    Value,
    convert,
)
from graphc.frontends.onnx.reading import default_opset
from graphc.graph import identifier

_FOUR_BITS = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4)
# Vectors up to these sizes may be shapes or scales: their values are known while tracing.
_LARGEST_SHAPE = 64
_LARGEST_SCALES = 8


class OnnxNode(nn.Module):
    """One node. Its name in the module tree is its name in ONNX, and so the layer path of all that it becomes."""

    def __init__(self, proto: onnx.NodeProto, attributes: Mapping[str, Any], opset: int) -> None:
        super().__init__()
        self.proto = proto
        self.operator = _operator_name(proto)
        self.attributes = dict(attributes)
        self.extra = {"opset": opset, "results": sum(1 for name in proto.output if name)}

    def forward(self, *values: Value | None) -> Any:
        try:
            return self._call(values)
        except UnsupportedAttribute as error:
            found = Unsupported(self.proto.output[0], self.proto.op_type, self.proto.name, str(error))
            raise UnsupportedOperatorError("the ONNX frontend", [found]) from error
        except GraphcError:
            raise
        except Exception as error:
            shapes = ", ".join("-" if value is None else str(list(value.shape)) for value in values)
            raise CaptureError(
                f"ONNX {self.proto.op_type} '{self.proto.name}' cannot take inputs {shapes}: {error}"
            ) from error

    def _call(self, values: Sequence[Value | None]) -> Any:
        name = self.operator
        if name in KNOWN_OPERATORS and all(isinstance(value, np.ndarray) for value in values if value is not None):
            result = KNOWN_OPERATORS[name](values, self.attributes, **self.extra)
            if result is not NotImplemented:
                return result
        return OPERATORS[name](values, self.attributes, **self.extra)

    def operands(self, tensors: Mapping[str, Tensor], known: Mapping[str, Known]) -> list[Value | None]:
        """The node's inputs. A small initializer is there both as a tensor and as known values: take what is wanted."""
        names = self.proto.input
        if self.operator in KNOWN_OPERATORS and all(name in known for name in names if name):
            return [known.get(name) for name in names]
        kinds = [OPERATORS[self.operator].kind(index) for index in range(len(names))]
        return [
            None
            if not name
            else tensors[name]
            if name in tensors and (name not in known or kind is Tensor or (kind is Operand and known[name].ndim))
            else known[name]
            for name, kind in zip(names, kinds, strict=True)
        ]


class OnnxModule(nn.Module):
    """Runs an ONNX model in torch. Weights keep their ONNX names; one result is returned plain, several as a tuple.

    `inputs` maps each input's name to its sizes (int, or str for a dynamic one) and dtype. Raises
    UnsupportedOperatorError, for all operators at once, and CaptureError.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        self.name = identifier(model.graph.name or "model")
        self.opset = default_opset(model)
        self.known: dict[str, Known] = {}
        self.stored: dict[str, str] = {}  # ONNX name -> name in the module tree
        self.calls: list[OnnxNode] = []
        found: list[Unsupported] = []
        four_bits = set()
        for tensor in model.graph.initializer:
            self._store(tensor.name, numpy_helper.to_array(tensor))
            four_bits |= {tensor.name} if tensor.data_type in _FOUR_BITS else set()
        for index, proto in enumerate(model.graph.node):
            proto.name = self._unique(proto.name or f"{proto.op_type}_{index}")
            attributes = {item.name: _attribute(item) for item in proto.attribute}
            if proto.op_type == "Constant" and (value := _constant(attributes)) is not None:
                self._store(proto.output[0], value)
                continue
            hints = list(_objections(proto, attributes))
            if proto.op_type != "DequantizeLinear" and four_bits & set(proto.input):
                hints.append("takes no 4-bit tensor")
            found += [Unsupported(proto.output[0], proto.op_type, proto.name, hint) for hint in hints]
            node = OnnxNode(proto, attributes, self.opset)
            self._modules[proto.name] = node  # not add_module: names of nodes may hold dots
            self.calls.append(node)
        if found:
            raise UnsupportedOperatorError("the ONNX frontend", found)
        self.inputs = {value.name: _signature(value) for value in model.graph.input if value.name not in self.stored}
        self.results = [value.name for value in model.graph.output]
        self._name_arguments()

    def _name_arguments(self) -> None:
        """Give `forward` the parameters that the model names: torch.export calls the graph's inputs so."""

        def forward(*args: Tensor) -> Any:
            return self._run(args)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(identifier(name), kind) for name in self.inputs]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        self.forward = forward

    def _unique(self, name: str) -> str:
        unique, count = name, 0
        while unique in self._modules or unique in self.stored.values():
            count += 1
            unique = f"{name}_{count}"
        return unique

    def _store(self, name: str, array: np.ndarray[Any, Any]) -> None:
        """Register an initializer under its own name, dots making submodules as in PyTorch."""
        if array.ndim <= 1 and array.size <= (_LARGEST_SHAPE if array.dtype.kind in "bi" else _LARGEST_SCALES):
            self.known[name] = array
        owner: nn.Module = self
        *path, leaf = name.split(".")
        if not all((*path, leaf)):
            path, leaf = [], identifier(name)
        for part in path:
            if part not in owner._modules:
                if hasattr(owner, part):
                    owner, path, leaf = self, [], identifier(name)
                    break
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]  # type: ignore[assignment]
        while hasattr(owner, leaf):
            leaf += "_"
        tensor = _tensor(array, name)
        if tensor.is_floating_point():
            owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            owner.register_buffer(leaf, tensor)
        self.stored[name] = ".".join((*path, leaf))

    def _run(self, args: Sequence[Tensor]) -> Any:
        if len(args) != len(self.inputs):
            raise CaptureError(
                f"the ONNX model takes {len(self.inputs)} inputs ({', '.join(self.inputs)}), got {len(args)}"
            )
        weights = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        tensors = {name: weights[path] for name, path in self.stored.items()}
        tensors.update(zip(self.inputs, args, strict=True))
        known = dict(self.known)
        for node in self.calls:
            outputs = node(*node.operands(tensors, known))
            for name, value in zip(
                node.proto.output, outputs if isinstance(outputs, tuple) else (outputs,), strict=False
            ):
                values: dict[str, Any] = known if isinstance(value, np.ndarray) else tensors
                values[name] = value
        results = tuple(tensors[name] if name in tensors else convert(known[name], Tensor) for name in self.results)
        return results[0] if len(results) == 1 else results

    def example_inputs(self) -> tuple[Tensor, ...]:
        """Zeros of the declared shapes. Raises CaptureError where the model leaves sizes open."""
        open_sizes = {size for shape, _ in self.inputs.values() for size in shape if isinstance(size, str)}
        if open_sizes:
            signature = ", ".join(f"{name}: [{', '.join(map(str, shape))}]" for name, (shape, _) in self.inputs.items())
            raise CaptureError(
                f"the ONNX model leaves the sizes {', '.join(map(repr, sorted(open_sizes)))} open ({signature}): pass "
                "example_inputs, and dynamic_shapes for the sizes that shall stay dynamic"
            )
        return tuple(torch.zeros([int(size) for size in shape], dtype=dtype) for shape, dtype in self.inputs.values())


def _objections(proto: onnx.NodeProto, attributes: Mapping[str, Any]) -> Iterator[str]:
    """Why the table of operators cannot take this node."""
    if _operator_name(proto) not in OPERATORS:
        yield f"no rule for this operator of domain '{proto.domain}'" if proto.domain else "no rule for this operator"
    else:
        yield from OPERATORS[_operator_name(proto)].objections(proto.input, attributes)


def _operator_name(proto: onnx.NodeProto) -> str:
    """The node's key in the tables of operators."""
    return proto.op_type if proto.domain in ("", "ai.onnx") else f"{proto.domain}::{proto.op_type}"


def _attribute(proto: onnx.AttributeProto) -> Any:
    """An attribute's value in Python: text as str, tensors as arrays."""
    value = onnx.helper.get_attribute_value(proto)
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if proto.type == onnx.AttributeProto.STRINGS:
        return [item.decode("utf-8", "replace") for item in value]
    return list(value) if proto.type in (onnx.AttributeProto.INTS, onnx.AttributeProto.FLOATS) else value


def _constant(attributes: Mapping[str, Any]) -> np.ndarray[Any, Any] | None:
    """The value of a Constant node; None for text and sparse tensors."""
    for name, dtype in (("value_float", "f4"), ("value_floats", "f4"), ("value_int", "i8"), ("value_ints", "i8")):
        if name in attributes:
            return np.array(attributes[name], dtype)
    return attributes.get("value")


def _tensor(array: np.ndarray[Any, Any], name: str) -> Tensor:
    """An initializer as a tensor; four-bit integers take a byte each."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    if array.dtype.name in ("int4", "uint4"):
        array = array.astype(array.dtype.name.replace("4", "8"))
    code = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    if code not in TORCH_DTYPES:
        raise CaptureError(
            f"initializer '{name}' is {array.dtype}; legal: {', '.join(map(str, TORCH_DTYPES.values()))}"
        )
    return torch.from_numpy(array.copy())


def _signature(value: onnx.ValueInfoProto) -> tuple[tuple[int | str, ...], torch.dtype]:
    """Sizes and dtype of a model input; a dynamic size has its name in the model, or one made from the input's."""
    tensor = value.type.tensor_type
    if tensor.elem_type not in TORCH_DTYPES or not tensor.HasField("shape"):
        raise CaptureError(f"ONNX input '{value.name}' is no tensor of a known type and rank")
    sizes: list[int | str] = [
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{value.name}_{axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    ]
    return tuple(sizes), TORCH_DTYPES[tensor.elem_type]
