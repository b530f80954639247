"""Compile a small network in float and in int8, run both, save one, and read the report."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

import graphc

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(32, 10),
).eval()
x = torch.randn(1, 3, 32, 32)
with torch.no_grad():
    expected = model(x).numpy()

# Without calibration data the artifact computes in float.
float_artifact = graphc.compile(model, example_inputs=(x,))
error = np.abs(float_artifact.run(x) - expected).max()
print(f"float differs from torch by less than 1e-5: {error < 1e-5}")

# With calibration data (any iterable of inputs) it computes in int8.
calibration = [torch.randn(1, 3, 32, 32) for _ in range(8)]
int8_artifact = graphc.compile(model, example_inputs=(x,), calibration=calibration)
error = np.abs(int8_artifact.run(x) - expected).max() / np.abs(expected).max()
print(f"int8 differs from torch by less than 5 % of the largest logit: {error < 0.05}")
ratio = int8_artifact.size.weights / float_artifact.size.weights  # the bytes differ a little from chip to chip
print(f"int8 weights take less than a third of the bytes: {ratio < 1 / 3}")

# The report speaks in the model's own names.
for row in int8_artifact.report().rows:
    print(f"  {row.name:<12} {row.format or '-':<5} {row.bytes:>5} bytes {row.macs:>9,} MACs  {row.op}")

# One file, which runs with neither torch nor TVM installed.
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder, "model.graphc")
    int8_artifact.save(path)
    same = np.array_equal(graphc.load(path).run(x.numpy()), int8_artifact.run(x))
    print(f"loaded from its file it gives the same bits: {same}")
