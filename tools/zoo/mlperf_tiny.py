"""MLPerf Tiny's reference networks (Banbury et al., 2021): DS-CNN, MobileNetV1-0.25 and ResNet-8."""

import re
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from graphc.tools.zoo.same_padding import SameConv2d


def normalization(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class SeparableBlock(nn.Module):
    """Depthwise 3x3 and pointwise 1x1 convolution, each with batch normalization and ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.dw = SameConv2d(in_channels, in_channels, 3, stride, groups=in_channels)
        self.dwbn = normalization(in_channels)
        self.pw = nn.Conv2d(in_channels, channels, 1)
        self.pwbn = normalization(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.dwbn(self.dw(x)))
        return F.relu(self.pwbn(self.pw(x)))


class SeparableNetwork(nn.Module):
    """One convolution (`stem`), then separable blocks given as (output channels, stride), then a linear classifier."""

    def __init__(self, stem: SameConv2d, blocks: Sequence[tuple[int, int]], classes: int) -> None:
        super().__init__()
        self.conv0, self.bn0 = stem, normalization(stem.out_channels)
        inputs = [stem.out_channels, *(channels for channels, _ in blocks)]
        self.blocks = nn.Sequential(
            *(SeparableBlock(before, *block) for before, block in zip(inputs, blocks, strict=False))
        )
        self.fc = nn.Linear(inputs[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn0(self.conv0(x))))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def ds_cnn() -> SeparableNetwork:
    """Keyword spotting: [N, 1, 49, 10] MFCC features -> [N, 12] logits; 23,756 parameters."""
    return SeparableNetwork(SameConv2d(1, 64, (10, 4), stride=2), [(64, 1)] * 4, classes=12)


def mobilenet_v1_025() -> SeparableNetwork:
    """Visual wake words: [N, 3, 96, 96] images in [0, 1] -> [N, 2] logits (1 = person); 216,322 parameters."""
    blocks = [(16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), *[(128, 1)] * 5, (256, 2), (256, 1)]
    return SeparableNetwork(SameConv2d(3, 8, 3, stride=2), blocks, classes=2)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions; a 1x1 convolution without normalization as shortcut where the shape changes."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.c1, self.b1 = SameConv2d(in_channels, channels, 3, stride), normalization(channels)
        self.c2, self.b2 = SameConv2d(channels, channels, 3), normalization(channels)
        self.sc = SameConv2d(in_channels, channels, 1, stride) if stride != 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.b2(self.c2(F.relu(self.b1(self.c1(x)))))
        return F.relu(self.sc(x) + y)


class ResNet8(nn.Module):
    """[N, 3, 32, 32] images in [0, 255] -> [N, 10] logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.bn0 = SameConv2d(3, 16, 3), normalization(16)
        self.stage1 = ResidualBlock(16, 16, stride=1)
        self.stage2 = ResidualBlock(16, 32, stride=2)
        self.stage3 = ResidualBlock(32, 64, stride=2)
        self.fc = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.conv0(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


def rename(name: str) -> str:
    """The module path of a stored tensor: `pwbn3.bias` -> `blocks.3.pwbn.bias`, `s2c1.weight` -> `stage2.c1.weight`."""
    name = re.sub(r"^(dw|dwbn|pw|pwbn)(\d+)\.", r"blocks.\2.\1.", name)
    return re.sub(r"^s(\d)(\w+)\.", r"stage\1.\2.", name)
