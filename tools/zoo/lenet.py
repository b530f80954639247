"""LeNet 20-50-500 for MNIST (LeCun et al., 1998, in Caffe's sizes)."""

import torch.nn.functional as F
from torch import Tensor, nn


class LeNet(nn.Module):
    """[N, 1, 28, 28] normalised images -> [N, 10] logits; 431,080 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        logits: Tensor = self.fc2(F.relu(self.fc1(x.flatten(1))))
        return logits
