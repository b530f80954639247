"""SRGAN's generator (Ledig et al., 2017) for twofold super-resolution, in the layout of leftthomas/SRGAN."""

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn2(self.conv2(self.prelu(self.bn1(self.conv1(x)))))
        return x + y


class UpsampleBlock(nn.Module):
    """[N, C, H, W] -> [N, C, 2H, 2W]"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels * 4, 3, padding=1)
        self.pixel_shuffle = nn.PixelShuffle(2)
        self.prelu = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        upsampled: Tensor = self.prelu(self.pixel_shuffle(self.conv(x)))
        return upsampled


class Generator(nn.Module):
    """[N, 3, H, W] images in [0, 1] -> [N, 3, 2H, 2W] images in [0, 1]; 586,379 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, 64, 9, padding=4), nn.PReLU())
        self.block2 = ResidualBlock(64)
        self.block3 = ResidualBlock(64)
        self.block4 = ResidualBlock(64)
        self.block5 = ResidualBlock(64)
        self.block6 = ResidualBlock(64)
        self.block7 = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.PReLU())
        self.block8 = nn.Sequential(UpsampleBlock(64), nn.Conv2d(64, 3, 9, padding=4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(x)
        y = self.block6(self.block5(self.block4(self.block3(self.block2(x)))))
        return (torch.tanh(self.block8(x + self.block7(y))) + 1) / 2
