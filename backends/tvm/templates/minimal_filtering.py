"""F(m, 3), the minimal filtering of m results by 3 taps, in floats and exactly in integers.

    y = A^T [(G g) * (B^T d)]          for one dimension; for two, each matrix from both sides

With integers G is scaled row by row until it is whole, and A^T by what makes up for it, so that a result comes out as
a known multiple of itself: 9 * 2^s. Sums are computed modulo 2^32, where a division by 9 is a product, so nothing need
fit in between; the result must lie within 32 - s bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script import builder as T

from graphc.backends.tvm.kernel import Expr
from graphc.backends.tvm.scalars import number, wrapping_add, wrapping_multiply, wrapping_subtract

Values = list[Expr]


@dataclass(frozen=True)
class Filtering:
    """F(m, 3): `forward` is B^T, m + 2 values to as many; `filter` G, 3 to m + 2; `backward` A^T, m + 2 to m."""

    m: int
    forward: Callable[[Values], Values]
    filter: Callable[[Values], Values]
    backward: Callable[[Values], Values]
    finish: Callable[[Expr, int, int], Expr] = lambda value, i, j: value  # the result from its multiple, at row i, j

    @property
    def taps(self) -> int:
        return self.m + 2


def _forward2(d: Values) -> Values:
    return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _filter2(g: Values) -> Values:
    even, odd = (g[0] + g[2]) * 0.5, g[1] * 0.5
    return [g[0], even + odd, even - odd, g[2]]


def _backward2(m: Values) -> Values:
    return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _forward4(d: Values) -> Values:
    """Points 0, 1, -1, 2, -2 and infinity; pairs of opposite points share their even and their odd part."""
    four, five, two = (number(d[0], value) for value in (4, 5, 2))
    even1, odd1 = T.Bind(d[4] - d[2] * four), T.Bind(d[3] - d[1] * four)
    even2, odd2 = T.Bind(d[4] - d[2]), T.Bind((d[3] - d[1]) * two)
    ends = d[4] + (d[0] * four - d[2] * five), d[5] + (d[1] * four - d[3] * five)
    return [ends[0], even1 + odd1, even1 - odd1, even2 + odd2, even2 - odd2, ends[1]]


def _filter4(g: Values) -> Values:
    even1, odd1 = (g[0] + g[2]) * (-1 / 6), g[1] * (-1 / 6)
    even2, odd2 = g[0] * (1 / 24) + g[2] * (1 / 6), g[1] * (1 / 12)
    return [g[0] * 0.25, even1 + odd1, even1 - odd1, even2 + odd2, even2 - odd2, g[2]]


def _backward4(m: Values) -> Values:
    even1, odd1 = T.Bind(m[1] + m[2]), T.Bind(m[1] - m[2])
    even2, odd2 = T.Bind(m[3] + m[4]), T.Bind(m[3] - m[4])
    return [m[0] + even1 + even2, odd1 + odd2 * 2, even1 + even2 * 4, m[5] + odd1 + odd2 * 8]


# 1/9 modulo 2^32, and the powers of two by which each row of the scaled A^T multiplies its result (beside 3).
_NINTH, _SHIFTS = 0x38E38E39, (3, 2, 1, 1)
# |y| must be less than this, for the sake of row 0, which is scaled by 24 from both sides.
LARGEST_INTEGER = 1 << 25


def _integer_filter4(g: Values) -> Values:
    """G, its rows times 24, 6, 6, 24, 24, 6. At most 7 * 7 times as large as the taps."""
    even1, even2 = g[0] + g[2], g[0] + g[2] * 4
    return [g[0] * 6, T.int32(0) - even1 - g[1], g[1] - even1, even2 + g[1] * 2, even2 - g[1] * 2, g[2] * 6]


def _integer_backward4(m: Values) -> Values:
    """A^T, its columns times 1, 4, 4, 1, 1, 4 (24 over the factors of G), its rows over 1, 2, 4, 4."""
    add, subtract = wrapping_add, wrapping_subtract

    def times(value: Expr, power: int) -> Expr:
        return T.shift_left(value, T.broadcast(T.int32(power), _lanes(value)))

    even1, odd1 = T.Bind(add(m[1], m[2])), T.Bind(subtract(m[1], m[2]))
    even2, odd2 = T.Bind(add(m[3], m[4])), T.Bind(subtract(m[3], m[4]))
    return [
        add(add(m[0], times(even1, 2)), even2),
        add(times(odd1, 1), odd2),
        add(even1, even2),
        add(add(odd1, times(odd2, 1)), m[5]),
    ]


def _integer_finish4(value: Expr, i: int, j: int) -> Expr:
    lanes = _lanes(value)
    product = wrapping_multiply(value, T.broadcast(T.int32(_NINTH), lanes))
    return T.shift_right(product, T.broadcast(T.int32(_SHIFTS[i] + _SHIFTS[j]), lanes))


def _lanes(value: Expr) -> int:
    return int(str(value.ty.dtype).partition("x")[2])


FILTERINGS = {
    2: Filtering(2, _forward2, _filter2, _backward2),
    4: Filtering(4, _forward4, _filter4, _backward4),
}


def on_both_sides(transform: Callable[[Values], Values], values: list[Values]) -> list[Values]:
    """M x M^T for a matrix x, where `transform` is M x."""
    columns = [[T.Bind(item) for item in transform(list(column))] for column in zip(*values, strict=True)]
    return [[T.Bind(item) for item in transform(list(row))] for row in zip(*columns, strict=True)]


# int16 tiles of int8 images (|B^T d B| is at most 100 * 255), int16 filters of int8 ones.
INTEGER_FILTERING = Filtering(4, _forward4, _integer_filter4, _integer_backward4, _integer_finish4)
