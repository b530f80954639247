"""The graphc:: operators: equal to their reference bit for bit, on every instruction set."""

import pytest
import torch
from torch import nn

import graphc.operators  # noqa: F401  (registers torch.ops.graphc)

quantized = torch.ops.graphc
torch.manual_seed(0)
TARGETS = (
    "host",
    "x86-64:v2",
    "x86-64:v3",
    "x86-64:v4",
    "x86-64:vnni",
    "x86-64:amx",
    "arm64:cortex-a72",
    "arm64:cortex-a76",
)


def stored(tensor: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)


def signed(*shape: int) -> torch.Tensor:
    tensor = torch.randint(-128, 128, shape, dtype=torch.int8)
    tensor.view(-1)[: min(8, tensor.numel())] = -128  # products and pair sums that overflow narrow arithmetic
    return tensor


def unsigned(*shape: int) -> torch.Tensor:
    tensor = torch.randint(0, 256, shape, dtype=torch.uint8)
    tensor.view(-1)[: min(8, tensor.numel())] = 255
    return tensor


def weight(*shape: int) -> nn.Parameter:
    return stored(signed(*shape))


def bias(count: int) -> nn.Parameter:
    return stored(torch.randint(-(2**20), 2**20, (count,), dtype=torch.int32))


def factors(count: int | None) -> tuple[nn.Parameter, nn.Parameter]:
    shape = () if count is None else (count,)
    multiplier = torch.randint(2**30, 2**31 - 1, shape, dtype=torch.int64).to(torch.int32)
    return stored(multiplier), stored(torch.randint(38, 46, shape, dtype=torch.int32))


def conv(x, w, b=None, zero=0, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    return (quantized.integer_convolution.default, x, w, b, zero, list(stride), list(padding), list(dilation), groups)


SUMS = torch.randint(-(2**31), 2**31 - 1, (2, 5, 6, 7), dtype=torch.int64).to(torch.int32)
REALS = torch.cat([torch.randn(2000) * 30, torch.arange(-9, 9) + 0.5, torch.tensor([torch.nan, 1e30, -torch.inf])])
X = signed(2, 6, 13, 11)
SCALES = (torch.rand(16) + 0.5) * 10.0 ** torch.randint(-5, 3, (16,))


def ties(scale: torch.Tensor) -> torch.Tensor:
    """What a division by `scale` takes to the middle between whole numbers, and its neighbours in float32."""
    middle = ((torch.arange(-150, 150).double() + 0.5) * scale.double()).float()
    return torch.cat([middle, middle.nextafter(middle + 1), middle.nextafter(middle - 1), REALS])


half = stored(torch.tensor(0.5)), stored(torch.tensor(-7, dtype=torch.int32))
channels = stored(torch.rand(5) + 0.1), stored(torch.randint(-9, 9, (5,), dtype=torch.int32))

CASES = {
    **{
        f"quantize near ties of {scale:.3g}": (
            quantized.quantize.default, ties(scale), stored(scale), stored(torch.tensor(zero, dtype=torch.int32)),
            None, -128, 127,
        )
        for zero, scale in enumerate(SCALES)
    },
    "rescale": (quantized.rescale.default, SUMS, *factors(None), 0, 3, None, -128, 127),
    "rescale channels": (quantized.rescale.default, SUMS, *factors(5), 0, -128, 1, -128, 127),
    "rescale to uint8": (quantized.rescale.default, SUMS, *factors(5), 0, 128, 1, 0, 255),
    "rescale to int32": (quantized.rescale.default, signed(3, 7), *factors(None), -5, 0, None, -(2**20), 2**20),
    "rescale far zero": (quantized.rescale.default, SUMS, *factors(None), -(2**31) + 1, 9, None, -100, 100),
    "rescale one channel": (quantized.rescale.default, SUMS[:, :1], *factors(1), 0, 0, 1, -128, 127),
    "quantize": (quantized.quantize.default, REALS, *half, None, -128, 127),
    "quantize to uint8": (quantized.quantize.default, REALS, half[0], stored(torch.tensor(9).int()), None, 0, 255),
    "quantize channels": (quantized.quantize.default, torch.randn(2, 5, 6, 7) * 9, *channels, 1, -128, 127),
    "dequantize": (quantized.dequantize.default, signed(1000), *half, None),
    "dequantize channels": (quantized.dequantize.default, signed(2, 5, 6, 7), *channels, 1),
    "conv": conv(X, weight(9, 6, 3, 3), bias(9), -5, padding=(1, 1)),
    "conv 1x1": conv(signed(2, 32, 5, 9), weight(40, 32, 1, 1), bias(40), 7),
    "conv 1x1 odd": conv(X, weight(40, 6, 1, 1), None, -128, (2, 2)),
    "conv unsigned": conv(unsigned(2, 6, 13, 11), weight(33, 6, 3, 2), bias(33), 131, (2, 1), (1, 1)),
    "conv unsigned 1x1": conv(unsigned(1, 16, 4, 5), weight(16, 16, 1, 1), bias(16), 255),
    "conv dilated": conv(X, weight(9, 6, 3, 3), bias(9), 0, (1, 2), (2, 4), (2, 4)),
    "conv in groups": conv(X, weight(9, 2, 3, 3), bias(9), 3, (2, 2), (1, 1), groups=3),
    "conv large": conv(signed(1, 64, 8, 8), weight(32, 64, 3, 3), bias(32), 127, padding=(1, 1)),
    "conv large with stride": conv(signed(2, 64, 9, 15), weight(40, 64, 3, 3), bias(40), 99, (2, 2), (1, 1)),
    "conv large unpadded": conv(unsigned(2, 64, 7, 9), weight(48, 64, 3, 2), bias(48), 200),
    "conv 1x1 with stride": conv(signed(1, 128, 9, 9), weight(32, 128, 1, 1), None, -4, (2, 2)),
    "conv of three channels": conv(signed(1, 3, 24, 36), weight(17, 3, 7, 7), bias(17), 99, (2, 2), (3, 3)),
    "conv of one channel": conv(signed(1, 1, 12, 12), weight(20, 1, 5, 5), bias(20), 1),
    "conv 1d": (
        quantized.integer_convolution.default, X[0], weight(9, 13, 3), bias(9), 4, [2], [1], [1], 1,
    ),
    "depthwise": conv(signed(1, 37, 9, 10), weight(37, 1, 3, 3), bias(37), -3, (2, 2), (1, 1), groups=37),
    "depthwise unsigned": conv(unsigned(1, 16, 9, 10), weight(16, 1, 3, 3), bias(16), 77, padding=(1, 1), groups=16),
    "depthwise 5x5": conv(signed(2, 24, 11, 9), weight(24, 1, 5, 5), bias(24), 9, (1, 1), (2, 2), groups=24),
    "depthwise 5x5, stride": conv(signed(1, 9, 12, 13), weight(9, 1, 5, 5), bias(9), 0, (2, 2), (2, 2), groups=9),
    "depthwise dilated": conv(signed(1, 20, 9, 8), weight(20, 1, 3, 3), None, 5, (1, 1), (2, 2), (2, 2), groups=20),
    "depthwise uneven": conv(signed(1, 17, 8, 5), weight(17, 1, 2, 4), bias(17), 1, (3, 1), (0, 2), groups=17),
    "depthwise of few channels": conv(signed(1, 5, 4, 30), weight(5, 1, 3, 3), bias(5), -1, (1, 1), (1, 1), groups=5),
    "depthwise of one row": conv(signed(1, 16, 1, 20), weight(16, 1, 1, 3), bias(16), -1, (1, 1), (0, 1), groups=16),
    "linear": (quantized.integer_linear.default, signed(5, 33), weight(70, 33), bias(70), 11),
    "linear of one row": (quantized.integer_linear.default, signed(1, 64), weight(10, 64), None, -128),
    "linear unsigned": (quantized.integer_linear.default, unsigned(2, 3, 64), weight(17, 64), bias(17), 128),
    "linear of many rows": (quantized.integer_linear.default, signed(50, 100), weight(33, 100), bias(33), 11),
    "linear wide": (quantized.integer_linear.default, unsigned(3, 7, 128), weight(48, 128), bias(48), 128),
    "sum pool": (quantized.integer_sum_pool2d.default, X, -7, [3, 2], [2, 2], [1, 1]),
    "sum pool unsigned": (quantized.integer_sum_pool2d.default, unsigned(1, 40, 7, 7), 100, [7, 7], [7, 7], [0, 0]),
    "conv of few filters": conv(X, weight(7, 6, 3, 3), bias(7), -5, padding=(1, 1)),
    "conv of four filters": conv(unsigned(1, 64, 9, 20), weight(4, 64, 3, 3), bias(4), 9, (1, 2), (1, 1)),
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_is_equal_to_the_reference(suite, name, target):
    suite.check(name, target)
