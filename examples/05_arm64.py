"""Compile for another chip: the same model for this machine and for an arm64 core, run side by side.

Needs qemu-user to run the arm64 code here (Debian, Ubuntu: apt install qemu-user).
"""

import numpy as np
import torch
from torch import nn

import graphc

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 8, 3, stride=2),
    nn.ReLU(),
    nn.Conv2d(8, 16, 3),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(16 * 11 * 11, 10),
).eval()
x = torch.randn(1, 1, 28, 28)
calibration = [torch.randn(1, 1, 28, 28) for _ in range(8)]

for pipeline in ("float", "int8"):
    here, there = (
        graphc.compile(model, target, (x,), calibration=calibration, pipeline=pipeline)
        for target in ("host", "arm64:cortex-a76")
    )
    ours, theirs = here.run(x), there.run(x)
    same = np.array_equal(ours, theirs)
    close = np.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    print(f"{pipeline}: {there.target.arch} code with {' '.join(there.target.features)}")
    # Integers leave no room for rounding: every target computes the same bits.
    print(f"  arm64 gives the same bits: {same}" if pipeline == "int8" else f"  arm64 agrees within 1e-5: {close}")
