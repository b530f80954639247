"""Sizes that depend on the graph's symbols: as TIR expressions, as C text, and bounded.

A size is an int or a sympy expression over dynamic sizes, each a positive integer with a declared range.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import sympy
from torch.utils._sympy.functions import CeilDiv, CleanDiv, FloorDiv, IntTrueDiv, Mod, PythonMod

from graphc.errors import GraphcError
from graphc.tensor_type import Size, SymbolRange

Fold: TypeAlias = Callable[[str, Sequence[Any]], Any]


def fold(size: Size, leaf: Callable[[int | sympy.Symbol], Any], operation: Fold) -> Any:
    """Evaluate a size bottom-up: `leaf` takes ints and symbols, `operation` one of + * // % max min and operands."""
    if isinstance(size, int) or size.is_Integer:
        return leaf(int(size))
    if isinstance(size, sympy.Symbol):
        return leaf(size)

    def walk(part: Size) -> Any:
        return fold(part, leaf, operation)

    if isinstance(size, sympy.Add | sympy.Mul):
        result = walk(size.args[0])
        if isinstance(size, sympy.Mul) and not size.args[0].is_integer:  # a rational factor in front of a product
            numerator, denominator = sympy.fraction(size)
            return operation("//", (walk(numerator), walk(denominator)))
        for part in size.args[1:]:
            result = operation("+" if isinstance(size, sympy.Add) else "*", (result, walk(part)))
        return result
    if isinstance(size, sympy.Pow) and size.exp.is_Integer and size.exp > 0:
        return fold(sympy.Mul(*[size.base] * int(size.exp), evaluate=False), leaf, operation)
    if isinstance(size, FloorDiv | CleanDiv | IntTrueDiv):
        return operation("//", tuple(walk(part) for part in size.args))
    if isinstance(size, CeilDiv):
        base, divisor = size.args
        return operation("//", (walk(base + divisor - 1), walk(divisor)))
    if isinstance(size, Mod | PythonMod | sympy.Mod):
        return operation("%", tuple(walk(part) for part in size.args))
    if isinstance(size, sympy.floor):
        numerator, denominator = sympy.fraction(sympy.together(size.args[0]))
        return operation("//", (walk(numerator), walk(denominator)))
    if isinstance(size, sympy.ceiling):
        numerator, denominator = sympy.fraction(sympy.together(size.args[0]))
        return operation("//", (walk(numerator + denominator - 1), walk(denominator)))
    name = type(size).__name__
    if name in ("Max", "Min"):
        result = walk(size.args[0])
        for part in size.args[1:]:
            result = operation(name.lower(), (result, walk(part)))
        return result
    raise GraphcError(f"cannot compute the dynamic size '{size}': {name} is not integer arithmetic")


def bound(size: Size, values: Mapping[str, int]) -> int:
    """The size at the given values of the symbols."""
    rules: dict[str, Callable[[int, int], int]] = {
        "+": int.__add__, "*": int.__mul__, "//": int.__floordiv__, "%": int.__mod__, "max": max, "min": min,
    }  # fmt: skip
    return int(fold(size, lambda x: x if isinstance(x, int) else values[x.name], lambda name, args: rules[name](*args)))


def c_text(size: Size, symbols: Sequence[str], array: str = "symbols") -> str:
    """The size as a C expression over `array[k]`; sizes are not negative, so C's division rounds as floor does."""

    def operation(name: str, args: Sequence[str]) -> str:
        a, b = args
        if name in ("max", "min"):
            return f"({a} {'>' if name == 'max' else '<'} {b} ? {a} : {b})"
        return f"({a} {name.replace('//', '/')} {b})"

    return str(fold(size, lambda x: f"{x}" if isinstance(x, int) else f"{array}[{symbols.index(x.name)}]", operation))


class Ranges:
    """Bounds of sizes over the declared ranges of the symbols; sizes grow with their symbols."""

    def __init__(self, symbols: Mapping[str, SymbolRange]) -> None:
        self.least = {name: known.minimum for name, known in symbols.items()}
        self.most = {name: known.maximum for name, known in symbols.items()}

    def minimum(self, size: Size) -> int:
        return size if isinstance(size, int) else bound(size, self.least)

    def maximum(self, size: Size) -> int:
        return size if isinstance(size, int) else bound(size, self.most)


def product(sizes: Sequence[Size]) -> Size:
    """The product of sizes, 1 for none."""
    result: Size = 1
    for size in sizes:
        result = simplify(result * size)
    return result


def simplify(size: Any) -> Size:
    """Plain ints where a size is known."""
    return int(size) if isinstance(size, int) or getattr(size, "is_Integer", False) else size


def contiguous(shape: Sequence[Size], order: Sequence[int] | None = None) -> tuple[Size, ...]:
    """Strides of a dense tensor whose dimensions lie in `order`, outermost first (default: row-major)."""
    strides: list[Size] = [0] * len(shape)
    step: Size = 1
    for dim in reversed(range(len(shape)) if order is None else order):
        strides[dim] = step
        step = simplify(step * shape[dim])
    return tuple(strides)
