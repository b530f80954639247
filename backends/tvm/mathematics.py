"""Elementary functions as branch-free, vectorizable TIR expressions of IEEE float32, with no call into a C library.

Range reductions are the classical ones (Cody & Waite, Software Manual for the Elementary Functions, 1980); the
polynomials were fitted for this file: Lawson's iteratively reweighted least squares over 4,000 Chebyshev points, which
approaches the minimax polynomial, of the relative error of the function; coefficients rounded to float32, constant term
first. Infinities, NaN and denormals come out as IEEE 754 says, unless a function states otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm.tirx.script import builder as T

from graphc.backends.tvm.kernel import Expr
from graphc.backends.tvm.scalars import absolute, copy_sign, dtype, equal, number

# (exp(r) - 1 - r) / r^2 on |r| <= ln(2)/2: relative error of exp 3e-9.
_EXP = (0.4999999403953552, 0.1666651964187622, 0.04166839271783829, 0.008368780836462975, 0.0013814467238262296)
# (expm1(x) - x) / x^2 on |x| <= 0.36: relative error of expm1 3e-10.
_EXPM1 = (
    0.5, 0.1666666567325592, 0.04166631028056145, 0.008333398960530758, 0.001394468592479825, 0.0001984619302675128,
)  # fmt: skip
# (log(1 + f) - f + f^2/2) / f^3 on [sqrt(1/2) - 1, sqrt(2) - 1]: relative error of log 8e-10.
_LOG = (
    0.3333331346511841, -0.25000008940696716, 0.20002123713493347, -0.16668005287647247, 0.14219452440738678,
    -0.12405340373516083, 0.11888697743415833, -0.11677515506744385, 0.067477285861969,
)  # fmt: skip
# (tanh(x) - x) / x^3 in x^2, |x| <= 0.625: relative error of tanh 4e-9.
_TANH = (-0.3333328366279602, 0.13331490755081177, -0.05374349653720856, 0.020650586113333702, -0.005717044696211815)
# (sin(r) - r) / r^3 and (cos(r) - 1 + r^2/2) / r^4 in r^2, |r| <= pi/4: relative errors 5e-12 and 1e-13.
_SIN = (-0.1666666716337204, 0.008333329111337662, -0.00019839327433146536, 2.71823728326126e-06)
_COS = (0.0416666679084301, -0.0013888883404433727, 2.479951217537746e-05, -2.720954626056482e-07)
# erf(x) / x as a quotient in x^2, |x| <= 3.95, from where on erf is 1 in float32: relative error 2e-8.
_ERF = (
    (1.1283791065216064, 0.19154773652553558, 0.052875109016895294, 0.003808051347732544, 0.00028468522941693664,
     2.025927869908628e-06),
    (1.0, 0.5030874609947205, 0.11455856263637543, 0.015054870396852493, 0.0011706989025697112, 3.783187275985256e-05),
)  # fmt: skip

_LOG2_E = 1.4426950408889634
# ln(2) in two parts, the first with 9 trailing zero bits, so that multiples of it up to 2^9 are exact.
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# Adding it rounds a float32 to an integer, which then stands in the lowest mantissa bits.
_ROUND = 12582912.0  # 1.5 * 2^23


def polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's scheme; `coefficients` from the constant term up."""
    result = number(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + number(x, coefficient)
    return result


# -- exponentials ------------------------------------------------------------------------------------


def _two_to_the(n: Expr) -> Expr:
    """2^n for int32 n in [-126, 127]."""
    return T.reinterpret("float32", T.shift_left(n + T.int32(127), T.int32(23)))


def exp(x: Expr) -> Expr:
    """e^x: x = n ln 2 + r, e^x = 2^n e^r. 0 below -104, infinity above 88.73."""
    x = T.Bind(T.min(T.float32(89.0), T.max(T.float32(-105.0), x)))
    shifted = T.Bind(x * T.float32(_LOG2_E) + T.float32(_ROUND))
    n = T.Bind(T.reinterpret("int32", shifted) - T.int32(0x4B400000))
    whole = T.Bind(shifted - T.float32(_ROUND))
    r = T.Bind((x - whole * T.float32(_LN2_HIGH)) - whole * T.float32(_LN2_LOW))
    small = T.Bind(polynomial(r, _EXP) * (r * r) + r + T.float32(1.0))
    half = T.Bind(T.shift_right(n, T.int32(1)))  # in two steps: 2^n itself may be denormal, or infinite
    return small * _two_to_the(half) * _two_to_the(n - half)


def exp_of_negative(x: Expr) -> Expr:
    """e^x for x <= 0 in fewer steps, as a softmax needs it: 0 below -86.6, where it is less than 3e-38."""
    x = T.Bind(x)
    shifted = T.Bind(x * T.float32(_LOG2_E) + T.float32(_ROUND))
    whole = T.Bind(shifted - T.float32(_ROUND))
    r = T.Bind((x - whole * T.float32(_LN2_HIGH)) - whole * T.float32(_LN2_LOW))
    small = T.Bind((polynomial(r, _EXP) * r + T.float32(1.0)) * r + T.float32(1.0))
    scale = _two_to_the(T.reinterpret("int32", shifted) - T.int32(0x4B400000))
    return T.Select(x < T.float32(-86.6), T.float32(0.0), small * scale)


def expm1(x: Expr) -> Expr:
    """e^x - 1, accurate near 0."""
    x = T.Bind(x)
    return T.Select(absolute(x) < T.float32(0.35), polynomial(x, _EXPM1) * (x * x) + x, exp(x) - T.float32(1.0))


def log(x: Expr) -> Expr:
    """ln x: x = 2^e m with m in [sqrt(1/2), sqrt(2)). -infinity at 0, NaN below."""
    x = T.Bind(x)
    tiny = x < T.float32(1.17549435e-38)
    scaled = T.Bind(T.Select(tiny, x * T.float32(2.0**23), x))
    # Biased so that the mantissa's range splits at sqrt(1/2) rather than at 1.
    bits = T.Bind(T.reinterpret("int32", scaled) - T.int32(0x3F3504F3))
    exponent = T.Bind(T.shift_right(bits, T.int32(23)))
    mantissa = T.bitwise_and(bits, T.int32(0x7FFFFF)) + T.int32(0x3F3504F3)
    f = T.Bind(T.reinterpret("float32", mantissa) - T.float32(1.0))
    e = T.Bind(T.cast(exponent, "float32") - T.Select(tiny, T.float32(23.0), T.float32(0.0)))
    square = T.Bind(f * f)
    tail = polynomial(f, _LOG) * (square * f) + e * T.float32(_LN2_LOW) - T.float32(0.5) * square
    result = T.Bind(tail + f + e * T.float32(_LN2_HIGH))
    infinite = T.Select(equal(x, T.float32(math.inf)), x, T.Select(x > T.float32(0.0), result, T.float32(math.nan)))
    return T.Select(equal(x, T.float32(0.0)), T.float32(-math.inf), infinite)


def log1p(x: Expr) -> Expr:
    """ln(1 + x): ln(u) x / (u - 1) with u = 1 + x, which cancels u's rounding (Kahan)."""
    x = T.Bind(x)
    u = T.Bind(T.float32(1.0) + x)
    corrected = log(u) * (x / (u - T.float32(1.0)))
    return T.Select(equal(u, T.float32(1.0)), x, T.Select(equal(u, T.float32(math.inf)), u, corrected))


def power(x: Expr, y: Expr) -> Expr:
    """x^y in float64: exp(y ln|x|), to float32's accuracy; negative x with whole y as in C's pow, NaN otherwise."""
    kind = dtype(x)
    base, exponent = T.Bind(T.cast(x, "float64")), T.Bind(T.cast(y, "float64"))
    magnitude = T.Bind(absolute(base))
    result = T.Bind(_exp64(exponent * _log64(magnitude)))
    whole = equal(T.floor(exponent), exponent)
    half = T.Bind(exponent * T.float64(0.5))
    odd = T.And(whole, T.Not(equal(T.floor(half), half)))
    zero, infinity = T.float64(0.0), T.float64(math.inf)
    at_zero = T.Select(exponent > zero, zero, infinity)
    result = T.Bind(T.Select(equal(magnitude, zero), at_zero, result))
    result = T.Select(base < zero, T.Select(whole, T.Select(odd, -result, result), T.float64(math.nan)), result)
    one = T.Or(equal(exponent, zero), equal(base, T.float64(1.0)))
    return T.cast(T.Select(one, T.float64(1.0), result), kind)


def _log64(x: Expr) -> Expr:
    """ln of a positive float64: 2 artanh(s) with s = (m - 1) / (m + 1), by its series; infinity at infinity."""
    bits = T.Bind(T.reinterpret("int64", x) - T.int64(0x3FE6A09E667F3BCD))
    exponent = T.cast(T.shift_right(bits, T.int64(52)), "float64")
    mantissa = T.bitwise_and(bits, T.int64(0xFFFFFFFFFFFFF)) + T.int64(0x3FE6A09E667F3BCD)
    m = T.Bind(T.reinterpret("float64", mantissa))
    s = T.Bind((m - T.float64(1.0)) / (m + T.float64(1.0)))
    series = polynomial(T.Bind(s * s), [2.0 / (2 * k + 1) for k in range(9)])
    infinity = T.float64(math.inf)
    return T.Select(equal(x, infinity), infinity, s * series + exponent * T.float64(math.log(2)))


def _exp64(x: Expr) -> Expr:
    """e^x in float64 for results within float32's range, by the series of e^r."""
    x = T.Bind(T.min(T.float64(200.0), T.max(T.float64(-200.0), x)))
    shifted = T.Bind(x * T.float64(_LOG2_E) + T.float64(1.5 * 2.0**52))
    n = T.reinterpret("int64", shifted) - T.int64(0x4338000000000000)
    r = T.Bind(x - (shifted - T.float64(1.5 * 2.0**52)) * T.float64(math.log(2)))
    series = polynomial(r, [1.0 / math.factorial(k) for k in range(12)])
    return series * T.reinterpret("float64", T.shift_left(n + T.int64(1023), T.int64(52)))


def integer_power(x: Expr, exponent: int) -> Expr:
    """x^exponent by repeated squaring, exponent >= 0."""
    result = number(x, 1)
    first = True
    while exponent:
        if exponent & 1:
            result, first = (x if first else result * x), False
        x = T.Bind(x * x) if exponent > 1 else x
        exponent >>= 1
    return result


# -- hyperbolic and error functions ------------------------------------------------------------------


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x)."""
    return T.float32(1.0) / (T.float32(1.0) + exp(T.float32(0.0) - x))


def tanh(x: Expr) -> Expr:
    """A polynomial near 0, else 1 - 2 / (e^2|x| + 1)."""
    x = T.Bind(x)
    magnitude = T.Bind(absolute(x))
    square = T.Bind(x * x)
    near = polynomial(square, _TANH) * (square * x) + x
    far = T.float32(1.0) - T.float32(2.0) / (exp(magnitude + magnitude) + T.float32(1.0))
    return T.Select(magnitude < T.float32(0.625), near, copy_sign(far, x))


def erf(x: Expr) -> Expr:
    """One quotient of polynomials over the whole range."""
    x = T.Bind(T.max(T.float32(-3.95), T.min(T.float32(3.95), x)))
    square = T.Bind(x * x)
    above, below = (polynomial(square, coefficients) for coefficients in _ERF)
    return x * above / below


# -- circular functions ------------------------------------------------------------------------------


def _quadrant(x: Expr) -> tuple[Expr, Expr]:
    """x = q pi/2 + r with |r| <= pi/4, reduced in float64: good for |x| up to 10^7, which no position reaches."""
    wide = T.Bind(T.cast(x, "float64"))
    shifted = T.Bind(wide * T.float64(2 / math.pi) + T.float64(1.5 * 2.0**52))
    q = T.cast(T.reinterpret("int64", shifted), "int32")
    r = wide - (shifted - T.float64(1.5 * 2.0**52)) * T.float64(math.pi / 2)
    return T.Bind(q), T.Bind(T.cast(r, "float32"))


def _circular(q: Expr, r: Expr) -> Expr:
    """sin(q pi/2 + r)."""
    square = T.Bind(r * r)
    sine = polynomial(square, _SIN) * (square * r) + r
    cosine = polynomial(square, _COS) * (square * square) - T.float32(0.5) * square + T.float32(1.0)
    value = T.Bind(T.Select(equal(T.bitwise_and(q, T.int32(1)), T.int32(0)), sine, cosine))
    return T.Select(equal(T.bitwise_and(q, T.int32(2)), T.int32(0)), value, T.float32(0.0) - value)


def sin(x: Expr) -> Expr:
    return _circular(*_quadrant(x))


def cos(x: Expr) -> Expr:
    q, r = _quadrant(x)
    return _circular(q + T.int32(1), r)
