"""Fixtures for the whole suite: seeds, goldens, small networks, and what must be there under GRAPHC_CI=1.

A test that lacks an emulator, a package or data skips with a reason that says what to install. In continuous
integration (GRAPHC_CI=1) such a skip is a failure: nothing goes untested there without being seen. What no script can
install is a CPU: a test of instructions that this one lacks still skips. So does one of a library that only the bench
extra brings.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from graphc.frontends import trace
from graphc.graph import Graph


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write what the passes give into the golden files")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return _no_skip((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return _no_skip((yield))


def _no_skip(report: Any) -> Any:
    if report.skipped and any(reason in str(report.longrepr) for reason in ("this CPU lacks", "is of the bench extra")):
        return report
    if report.skipped and os.environ.get("GRAPHC_CI") == "1" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"under GRAPHC_CI=1 nothing may be skipped: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def no_tuning_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilations do not depend on what someone tuned on this machine."""
    monkeypatch.setenv("GRAPHC_TUNING", str(tmp_path / "no-tuning.json"))


@pytest.fixture(autouse=True)
def seed() -> None:
    """The same random numbers in every test, whatever ran before."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data() -> Path:
    """The evaluation data's folder; skips where there is none."""
    from graphc.tools.zoo.data import DataNotFoundError, root

    try:
        return root()
    except DataNotFoundError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[Path, str], None]:
    """golden(path, text): the file must hold the text; `--update-goldens` writes it."""

    def compare(path: Path, text: str) -> None:
        if request.config.getoption("--update-goldens"):
            path.write_text(text)
        assert path.exists(), f"{path.name} is missing: look at what the pass gives, then run with --update-goldens"
        assert text == path.read_text()

    return compare


@pytest.fixture(scope="session")
def relative_error() -> Callable[[Any, Any], float]:
    """relative_error(before, after): over lists of results, the largest error relative to the largest value of its
    tensor; infinite where types differ or only one side is NaN."""

    def measure(before: list[Tensor], after: list[Tensor]) -> float:
        worst = 0.0
        for old, new in zip(before, after, strict=True):
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                return float("inf")
            left, right = old.double(), new.double()
            same = (left == right) | (left.isnan() & right.isnan())
            error = torch.where(same, 0.0, (left - right).abs()).nan_to_num(nan=float("inf"))
            peak = left.nan_to_num(0.0, 0.0, 0.0).abs()
            if error.any():
                worst = max(worst, float(error.max()) / (float(peak.max()) or 1e-30))
        return worst

    return measure


@pytest.fixture(scope="session")
def promised() -> dict[str, float]:
    """What `relative_error` a pass's fidelity allows. "lossy" promises nothing; eight bits keep the sense even so."""
    return {"exact": 1e-4, "close": 0.05, "lossy": 0.15}


# -- networks ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Traced:
    """A network as a Graph, the inputs that it was traced with, and batches of flat inputs to calibrate on."""

    name: str
    graph: Graph
    inputs: tuple[Tensor, ...]
    calibration: list[list[Tensor]]


class Residual(nn.Module):
    """Batch normalization with a negative gamma, a residual sum, a concatenation, all pools, asymmetric geometry."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, (3, 5), (2, 1), (1, 2), bias=False)
        self.bn1 = nn.BatchNorm2d(8, eps=0.5)
        self.conv2 = nn.Conv2d(8, 8, 3, 1, 1, groups=2)
        self.bn2 = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu6(x + self.bn2(self.conv2(x)))
        x = torch.cat([F.max_pool2d(x, 2), F.avg_pool2d(self.branch(x), 2)], 1)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1)).softmax(-1)


class Depthwise(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(),
            nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.Hardswish(),
            nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6),
        )  # fmt: skip


class Transposed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.ConvTranspose2d(4, 6, 3, (2, 1), 1, (1, 0), groups=2), nn.BatchNorm2d(6), nn.LeakyReLU(0.2),
            nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=3), nn.Conv2d(6, 2, 3, padding=1), nn.Sigmoid(),
        )  # fmt: skip


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Linear(7, 16),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(16, 16),
            nn.GELU(),
            nn.Linear(16, 3),
        )


class Attention(nn.Module):
    """One block as a language model has it: normalization, heads, a causal mask, a gated product."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24, bias=False)
        self.out = nn.Linear(8, 8)
        self.gate = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(heads.transpose(1, 2).reshape(x.shape))
        return x + F.silu(self.gate(x)) * x


class Embedded(nn.Module):
    """Integer and boolean inputs; the embedding is tied to the last layer; results in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.embedding(ids) * mask.unsqueeze(-1)
        logits = self.head(torch.tanh(self.mix(x)))
        return {"logits": logits, "best": logits.argmax(-1)}


class TwoOutputs(nn.Module):
    """Shared values, a result that is an input, arithmetic on stored tensors, split and stack."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)
        self.register_buffer("table", torch.linspace(-1, 1, 6))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        h = self.lin(x) + self.table.exp() * 2
        left, right = h.split([2, 4], 1)
        return torch.stack([left, left + 1]), [right * torch.sigmoid(y[:, 2:]), x, h.sin() + h.sin()]


class DynamicBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.lin = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(F.max_pool2d(F.relu(self.conv(x)), 2).reshape(x.shape[0], -1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]], Any]] = {
    "residual": (Residual, lambda: (torch.randn(2, 3, 9, 8),), None),
    "depthwise": (Depthwise, lambda: (torch.randn(1, 4, 9, 7),), None),
    "transposed": (Transposed, lambda: (torch.randn(1, 4, 3, 5),), None),
    "perceptron": (Perceptron, lambda: (torch.randn(5, 7),), None),
    "attention": (Attention, lambda: (torch.randn(2, 5, 8),), None),
    "embedded": (Embedded, lambda: (torch.randint(11, (2, 4)), torch.rand(2, 4) < 0.7), None),
    "two_outputs": (TwoOutputs, lambda: (torch.randn(3, 6), torch.randn(3, 6)), None),
    "dynamic_batch": (DynamicBatch, lambda: (torch.randn(3, 2, 8, 8),), ({0: Dim("batch", min=1, max=16)},)),
}


@cache
def _traced(name: str) -> Traced:
    build, inputs, dynamic_shapes = NETWORKS[name]
    torch.manual_seed(len(name))
    model = build()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.1, 4)
                module.weight.normal_()  # half of them negative
                module.bias.normal_()
    example = inputs()
    graph = trace(model, example, dynamic_shapes=dynamic_shapes)
    return Traced(name, graph, example, [list(inputs()) for _ in range(4)])


@pytest.fixture(params=NETWORKS)
def traced(request: pytest.FixtureRequest) -> Traced:
    """Each of the small networks in turn."""
    return _traced(request.param)


@pytest.fixture(scope="session")
def network() -> Callable[[str], Traced]:
    """One small network by name."""
    return _traced
