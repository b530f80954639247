"""How an ONNX operator is written down: one Python function whose signature is the operator's schema.

    @operator("Reshape")
    def reshape(data: Tensor, shape: Known, /, *, allowzero: int = 0) -> Tensor: ...

Positional parameters are the node's inputs, keyword parameters its attributes; a missing input or attribute takes its
default, `None` for an input. The annotation of an input says how the function wants it:

    Tensor    a tensor                      Known    an array whose values are known while tracing (shapes, axes)
    Operand   a tensor or a Python number   Value    whatever is at hand

Two keywords are not attributes: `opset` (the version that the model imports) and `results` (how many outputs the node
has). An attribute annotated with `Literal[...]` takes just these values; anything else is reported before tracing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# Values known while tracing: a numeric array, or an array of objects that holds torch.SymInt for dynamic sizes.
Known: TypeAlias = npt.NDArray[Any]
Value: TypeAlias = Tensor | Known
Operand: TypeAlias = Tensor | float

_Function = TypeVar("_Function", bound=Callable[..., Any])
_KINDS = (Tensor, Known, Value, Operand)
_NOT_ATTRIBUTES = ("opset", "results")


class UnsupportedAttribute(Exception):
    """Raised by an operator's function for a use that it does not cover; the text says which."""


@dataclass(frozen=True)
class Operator:
    """One operator's function with its signature taken apart."""

    function: Callable[..., Any]
    inputs: tuple[Any, ...]  # one of _KINDS for each positional parameter
    variadic: Any | None  # the kind of `*inputs`
    attributes: Mapping[str, Any]  # name -> annotation
    required: frozenset[str]
    extra: frozenset[str]  # which of _NOT_ATTRIBUTES the function takes

    @staticmethod
    def of(function: Callable[..., Any]) -> Operator:
        hints = get_type_hints(function)
        kinds = {kind: kind for kind in _KINDS} | {kind | None: kind for kind in _KINDS}
        parameters = inspect.signature(function).parameters.values()
        keywords = [item for item in parameters if item.kind is item.KEYWORD_ONLY]
        return Operator(
            function,
            tuple(kinds[hints[item.name]] for item in parameters if item.kind is item.POSITIONAL_ONLY),
            next((kinds[hints[item.name]] for item in parameters if item.kind is item.VAR_POSITIONAL), None),
            {item.name: hints[item.name] for item in keywords if item.name not in _NOT_ATTRIBUTES},
            frozenset(k.name for k in keywords if k.default is k.empty and k.name not in _NOT_ATTRIBUTES),
            frozenset(item.name for item in keywords if item.name in _NOT_ATTRIBUTES),
        )

    def objections(self, inputs: Sequence[str], attributes: Mapping[str, Any]) -> Iterator[str]:
        """What this node uses and the function does not cover, one sentence each."""
        if self.variadic is None and any(inputs[len(self.inputs) :]):
            yield f"takes at most {len(self.inputs)} inputs here, the node has {len(inputs)}"
        for name in sorted(self.required - set(attributes)):
            yield f"needs the attribute '{name}'{_legal(self.attributes[name])}"
        for name, value in attributes.items():
            if name not in self.attributes:
                yield f"attribute '{name}' is not supported"
            elif get_origin(self.attributes[name]) is Literal and value not in get_args(self.attributes[name]):
                yield f"attribute '{name}' is {value!r}{_legal(self.attributes[name])}"

    def kind(self, index: int) -> Any:
        """How the function wants the input at `index`."""
        return self.inputs[index] if index < len(self.inputs) else self.variadic

    def __call__(self, values: Sequence[Value | None], attributes: Mapping[str, Any], **extra: int) -> Any:
        """Call the function on values converted to the kinds that it wants."""
        kinds = [self.kind(index) for index in range(len(values))]
        numbers = all(isinstance(value, np.ndarray) for value in values if value is not None)
        wanted = [Tensor if kind is Operand and numbers else kind for kind in kinds]
        inputs = [convert(value, kind) for value, kind in zip(values, wanted, strict=True)]
        return self.function(*inputs, **attributes, **{name: extra[name] for name in self.extra})


OPERATORS: dict[str, Operator] = {}  # over tensors
KNOWN_OPERATORS: dict[str, Operator] = {}  # over known values: taken where every input is known


def operator(*names: str, table: dict[str, Operator] = OPERATORS) -> Callable[[_Function], _Function]:
    """Enter a function into the table under the ONNX operators' names."""

    def enter(function: _Function) -> _Function:
        table.update(dict.fromkeys(names, Operator.of(function)))
        return function

    return enter


def known_operator(*names: str) -> Callable[[_Function], _Function]:
    return operator(*names, table=KNOWN_OPERATORS)


def known(values: Any) -> Known:
    """Sizes and the like as an array: int64 where no symbol is among them."""
    array = np.array(values, dtype=object)
    symbolic = any(isinstance(item, torch.SymInt | torch.SymFloat | torch.SymBool) for item in array.flat)
    return array if symbolic else np.array(values, dtype=None if array.size else np.int64)


def axes_of(from_input: Known | None, from_attribute: list[int] | None) -> list[int] | None:
    """Axes are an attribute in older operator sets and an input in newer ones."""
    return from_attribute if from_input is None else [int(axis) for axis in from_input.flat]


def convert(value: Value | None, kind: Any) -> Any:
    """A value as the `kind` of input that a function wants."""
    if not isinstance(value, np.ndarray):
        if value is not None and kind is Known:
            raise UnsupportedAttribute("shapes, axes and the like must not depend on the input's values")
        return value
    if kind in (Known, Value):
        return value
    if kind is Operand and value.ndim == 0:
        return value.item()
    if value.dtype != object:
        return torch.tensor(value.tolist(), dtype=torch.from_numpy(np.empty(0, value.dtype)).dtype)
    dtype = torch.int64 if all(isinstance(item, int | torch.SymInt) for item in value.flat) else torch.float32
    return torch.stack([torch.scalar_tensor(item, dtype=dtype) for item in value.flat]).reshape(value.shape)


def _legal(annotation: Any) -> str:
    legal = ", ".join(repr(choice) for choice in get_args(annotation)) if get_origin(annotation) is Literal else ""
    return f"; legal: {legal}" if legal else ""
