"""MobileNetV2 1.0 (Sandler et al., 2018) with batch normalization folded and TensorFlow's SAME padding."""

import torch.nn.functional as F
from torch import Tensor, nn

from graphc.tools.zoo.same_padding import SameConv2d

# (output channels, repeats, stride of the first repeat)
STAGES = ((16, 1, 1), (24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))


class Convolution(nn.Module):
    """Convolution with bias, then ReLU6 unless `linear`."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = SameConv2d(in_channels, channels, kernel, stride, groups=groups)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.linear else F.relu6(x)


class InvertedResidual(nn.Module):
    """1x1 expansion (unless `expansion` is 1), 3x3 depthwise, linear 1x1 projection; residual where shapes agree."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = Convolution(in_channels, hidden, 1) if expansion > 1 else nn.Identity()
        self.dw = Convolution(hidden, hidden, 3, stride, groups=hidden)
        self.project = Convolution(hidden, channels, 1, linear=True)
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.dw(self.expand(x)))
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """[N, 3, 224, 224] images in [-1, 1] -> [N, 1000] logits; 3,487,816 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, 3, stride=2)
        blocks: list[nn.Module] = []
        channels = 32
        for out_channels, repeats, stride in STAGES:
            for repeat in range(repeats):
                first_stride = stride if repeat == 0 else 1
                blocks.append(InvertedResidual(channels, out_channels, first_stride, expansion=6 if blocks else 1))
                channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = Convolution(channels, 1280, 1)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem(x)))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits
