"""U-Net for retinal vessels (orobix/retina-unet, after Ronneberger et al., 2015), without batch normalization."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def convolution(in_channels: int, channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, padding=1)


class UNet(nn.Module):
    """[N, 1, H, W] images in [0, 1], H and W multiples of 4 -> [N, 2, H, W] probabilities (background, vessel).

    471,010 parameters.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = convolution(1, 32), convolution(32, 32)
        self.conv3, self.conv4 = convolution(32, 64), convolution(64, 64)
        self.conv5, self.conv6 = convolution(64, 128), convolution(128, 128)
        self.conv7, self.conv8 = convolution(128 + 64, 64), convolution(64, 64)
        self.conv9, self.conv10 = convolution(64 + 32, 32), convolution(32, 32)
        self.conv11 = nn.Conv2d(32, 2, 1)
        self.pool = nn.MaxPool2d(2)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")

    def forward(self, x: Tensor) -> Tensor:
        full = F.relu(self.conv2(F.relu(self.conv1(x))))
        half = F.relu(self.conv4(F.relu(self.conv3(self.pool(full)))))
        x = F.relu(self.conv6(F.relu(self.conv5(self.pool(half)))))
        x = torch.cat([self.up(x), half], dim=1)
        x = F.relu(self.conv8(F.relu(self.conv7(x))))
        x = torch.cat([self.up(x), full], dim=1)
        x = F.relu(self.conv10(F.relu(self.conv9(x))))
        return F.softmax(F.relu(self.conv11(x)), dim=1)
