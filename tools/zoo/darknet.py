"""Tiny Darknet (Redmon, pjreddie.com/darknet/tiny-darknet): sixteen convolutions, three by three and one by one."""

import re

import torch.nn.functional as F
from torch import Tensor, nn

# (kernel, output channels) of a convolution, or None for a 2x2 max pooling.
LAYERS = (
    (3, 16), None, (3, 32), None, (1, 16), (3, 128), (1, 16), (3, 128), None, (1, 32), (3, 256), (1, 32), (3, 256),
    None, (1, 64), (3, 512), (1, 64), (3, 512), (1, 128), (1, 1000),
)  # fmt: skip


class Convolution(nn.Module):
    """Convolution without bias, batch normalization, LeakyReLU 0.1."""

    def __init__(self, in_channels: int, channels: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.bn(self.conv(x)), 0.1)


class TinyDarknet(nn.Module):
    """[N, 3, 224, 224] images in [0, 1] -> [N, 1000] logits; 1,042,104 parameters."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for layer in LAYERS[:-1]:
            if layer is None:
                layers.append(nn.MaxPool2d(2))
            else:
                kernel, out_channels = layer
                layers.append(Convolution(channels, out_channels, kernel))
                channels = out_channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Conv2d(channels, 1000, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.pool(self.classifier(self.features(x))).flatten(1)
        return logits


def rename(name: str) -> str:
    """The module path of a stored tensor: `bn3.bias` -> `features.5.bn.bias`, `conv15.bias` -> `classifier.bias`."""
    kind, index, tensor = re.split(r"(\d+)\.", name)
    position = [i for i, layer in enumerate(LAYERS) if layer is not None][int(index)]
    return f"classifier.{tensor}" if position == len(LAYERS) - 1 else f"features.{position}.{kind}.{tensor}"
