"""Sizes as text: what torch's shape rules write is read back, and nothing else is."""

from __future__ import annotations

import pytest
from torch.utils._sympy.functions import FloorDiv, Max

from graphc.errors import ParseError
from graphc.sizes import parse_size, size_text
from graphc.tensor_type import symbol

a, b = symbol("a"), symbol("b")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4", 4), (" 12 ", 12), ("-3", -3), ("a", a), ("a + b - 1", a + b - 1), ("2*a*b", 2 * a * b), ("a**2", a**2),
        ("a//2", FloorDiv(a, 2)), ("(a + 1)//2", FloorDiv(a + 1, 2)), ("7//2", 3), ("a - a", 0), ("a/a", 1),
        ("Max(a, 3)", Max(a, 3)), ("Min(a, a)", a), ("E", symbol("E")), ("oo", symbol("oo")), ("höhe", symbol("höhe")),
    ],
)  # fmt: skip
def test_sizes(text, size):
    found = parse_size(text)
    assert found == size
    assert isinstance(found, int) == isinstance(size, int)


@pytest.mark.parametrize(
    "text", ["a", "(a//2) + 1", "a*b//3 - 2", "Mod(a, 4)", "Max(1, a - b)", "Min(7, b)", "a**2 + 3"]
)
def test_round_trip(text):
    assert parse_size(size_text(parse_size(text))) == parse_size(text)


@pytest.mark.parametrize("value", range(1, 40))
def test_meaning(value):
    assert parse_size("(a//4)*2 + Mod(a, 3) + Max(a, 9) - Min(a, 5)").subs({a: value}) == (
        value // 4 * 2 + value % 3 + max(value, 9) - min(value, 5)
    )


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "²", "1.5", "'a'", "a.b", "a.__class__", "f(a)", "__import__('os').system('true')", "exec('1')",
        "a[0]", "[a]", "(a, b)", "lambda: 1", "a if b else 1", "a and b", "a < b", "not a", "a := 1", "*a", "a;b",
        "a\nb", "f'{a}'", "a = 1",
        "Max(*a)", "Max(a)(b)", "Mod(a)", "Mod(a, 0)", "a//0", "a % 0", "1/0", "0/0", "1/2", "2**-1", "Max()",
        "a**b", "9**9**9", "a**99999999", "(" * 3000, "-" * 3000 + "1", "9" * 5000, "\0", "None", "True", "1j", "...",
        "await a", "a@b", "a<<3", "class",
    ],
    ids=lambda text: ascii(text[:20]),
)  # fmt: skip
def test_nothing_else(text):
    with pytest.raises(ParseError, match="is no size"):
        parse_size(text)
