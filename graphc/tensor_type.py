"""Types of values: dtypes, and shapes whose sizes are integers or expressions over the graph's dynamic sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import sympy
import torch

Size: TypeAlias = "int | sympy.Expr"

DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorType:
    """Shape and dtype of a value; a size is an int or a sympy expression over the graph's symbols."""

    shape: tuple[Size, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        dtype = DTYPE_NAMES.get(self.dtype, str(self.dtype).removeprefix("torch."))
        return f"{dtype}[{', '.join(str(size) for size in self.shape)}]"

    @staticmethod
    def of(tensor: torch.Tensor) -> TensorType:
        """The type of a tensor; symbolic sizes (torch.SymInt) become sympy expressions."""
        return TensorType(tuple(_plain_size(size) for size in tensor.shape), tensor.dtype)


NodeType: TypeAlias = "TensorType | tuple[TensorType, ...]"


def _plain_size(size: Any) -> Size:
    if isinstance(size, torch.SymInt):
        expression = size.node.expr
        return int(expression) if expression.is_Integer else expression
    return int(size)


@dataclass(frozen=True)
class SymbolRange:
    """Inclusive range of a dynamic size."""

    minimum: int
    maximum: int


def symbol(name: str) -> sympy.Symbol:
    """The sympy symbol of a dynamic size: a positive integer."""
    return sympy.Symbol(name, integer=True, positive=True)


def evaluate(size: Size, sizes: Mapping[sympy.Symbol, Any]) -> Any:
    """A size with the symbols' values put in."""
    if isinstance(size, int):
        return size
    if isinstance(size, sympy.Symbol):
        return sizes[size]
    return int(size.subs(sizes))
