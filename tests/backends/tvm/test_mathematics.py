"""Elementary functions against float64: a few units in the last place, over the whole range."""

import pytest
import torch

aten = torch.ops.aten

WIDE = torch.cat([torch.linspace(-104, 88.7, 40001), torch.linspace(-1, 1, 20001), torch.logspace(-30, 0, 999)])
POSITIVE = torch.cat([torch.logspace(-37, 38, 40001), torch.linspace(0.5, 2, 20001)])
ANGLES = torch.cat([torch.linspace(-10, 10, 20001), torch.linspace(-1e5, 1e5, 20001)])

CASES = {
    "exp": (aten.exp.default, WIDE),
    "expm1": (aten.expm1.default, WIDE),
    "tanh": (aten.tanh.default, WIDE),
    "sigmoid": (aten.sigmoid.default, WIDE[WIDE > -80]),
    "erf": (aten.erf.default, WIDE),
    "log": (aten.log.default, POSITIVE),
    "log1p": (aten.log1p.default, POSITIVE),
    "sqrt": (aten.sqrt.default, POSITIVE),
    "rsqrt": (aten.rsqrt.default, POSITIVE),
    "sin": (aten.sin.default, ANGLES),
    "cos": (aten.cos.default, ANGLES),
    "power": (aten.pow.Tensor_Tensor, POSITIVE, torch.linspace(-0.9, 0.9, len(POSITIVE))),
}
# Units in the last place of the result; sin and cos lose relative accuracy at their zeros, as every float32 input does.
ULPS = {"sigmoid": 4, "expm1": 4, "erf": 4, "tanh": 3, "log1p": 3, "rsqrt": 2}


@pytest.mark.parametrize("name", CASES)
def test_is_accurate(suite, name):
    target, *args = CASES[name]
    got, _ = suite.results("host")[name]
    exact = target(*[argument.double() for argument in args])
    spacing = torch.finfo(torch.float32).eps * exact.abs().clamp(min=torch.finfo(torch.float32).tiny)
    if name in ("sin", "cos"):
        spacing = torch.full_like(exact, torch.finfo(torch.float32).eps)
    assert float(((got.double() - exact).abs() / spacing).max()) < ULPS.get(name, 2)
