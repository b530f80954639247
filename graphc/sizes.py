"""Symbolic sizes as text: sums, products, floor divisions and remainders of symbols and integers. Nothing is evaluated
as code: the expression is read by Python's parser and rebuilt node by node."""

from __future__ import annotations

import ast
from functools import cache
from typing import Any

import sympy
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod

from graphc.errors import ParseError
from graphc.tensor_type import Size, symbol

_FUNCTIONS: dict[str, Any] = {"Mod": Mod, "PythonMod": PythonMod, "FloorDiv": FloorDiv, "Min": Min, "Max": Max}
_LARGEST_POWER = 16  # a text must not ask for numbers that fill the memory


def size_text(size: Size) -> str:
    """A size as text that `parse_size` reads back."""
    return str(size)


@cache
def parse_size(text: str) -> Size:
    """The size of a text such as "4", "batch" or "(batch//2) + 1". Raises ParseError."""
    text = text.strip()
    try:
        if text.isascii() and text.isdigit():
            return int(text)
        found = sympy.sympify(_build(ast.parse(text, mode="eval").body, text))
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        raise ParseError(f"'{text}' is no size") from None
    if found.is_integer is False or found is sympy.nan:
        raise ParseError(f"'{text}' is no size: {found} is no integer")
    return int(found) if found.is_Integer else found


def _build(tree: ast.expr, text: str) -> Any:
    if isinstance(tree, ast.Constant) and type(tree.value) is int:
        return sympy.Integer(tree.value)
    if isinstance(tree, ast.Name):
        return symbol(tree.id)
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return -_build(tree.operand, text)
    if isinstance(tree, ast.BinOp):
        left, right = _build(tree.left, text), _build(tree.right, text)
        match tree.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Pow() if left.free_symbols and right in range(_LARGEST_POWER + 1):
                return left**right
            case ast.Div():
                return left / right
            case ast.FloorDiv():
                return FloorDiv(left, right)
            case ast.Mod():
                return Mod(left, right)
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in _FUNCTIONS:
        return _FUNCTIONS[tree.func.id](*(_build(argument, text) for argument in tree.args))
    raise ParseError(f"'{text}' is no size: only sums, products, // and % of symbols and integers are")
