"""Dynamic sizes as numbers and as C text."""

import pytest
import sympy
from torch.utils._sympy.functions import CeilDiv, FloorDiv, Max, Min, Mod

from graphc.backends.tvm.sizes import Ranges, bound, c_text, contiguous, product
from graphc.errors import GraphcError
from graphc.tensor_type import SymbolRange, symbol

n, s = symbol("n"), symbol("s")

SIZES = [
    7,
    n,
    n * s + 3,
    2 * n - s,
    n**2,
    FloorDiv(n + 2, 3),
    CeilDiv(n, 4),
    Mod(s, 5),
    Max(n, s),
    Min(n, s) + 1,
    sympy.floor((n - 1) / 2) + 1,
    sympy.ceiling(s / 3),
    (s // 2) * n,
]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("values", [(1, 1), (5, 9), (16, 7)])
def test_is_evaluated_as_sympy_does(size, values):
    named = dict(zip(("n", "s"), values, strict=True))
    expected = int(sympy.sympify(size).subs({n: values[0], s: values[1]}))
    assert bound(size, named) == expected
    text = c_text(size, ["n", "s"]).replace("/", "//").replace("?", "and").replace(":", "or")
    assert eval(text, {"symbols": values}) == expected


def test_bounds_are_those_of_the_symbols():
    ranges = Ranges({"n": SymbolRange(1, 8), "s": SymbolRange(2, 100)})
    assert (ranges.minimum(n * s + 1), ranges.maximum(n * s + 1)) == (3, 801)


def test_what_is_no_integer_arithmetic_is_an_error():
    with pytest.raises(GraphcError, match="cannot compute the dynamic size 'exp"):
        bound(sympy.exp(n), {"n": 1})


def test_strides_follow_the_order_of_dimensions():
    assert contiguous((n, 3, 5)) == (15, 5, 1)
    assert contiguous((2, 3, 5, 7), (0, 2, 3, 1)) == (105, 1, 21, 3)
    assert product([n, 2, s]) == 2 * n * s
