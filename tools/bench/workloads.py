"""What the bench runs: networks with their inputs and calibration data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from graphc.pipeline import CLEAN, Pipeline
from graphc.tools import pruning
from graphc.tools.zoo import gpt, resnet
from graphc.tools.zoo.benchmarks import Run
from graphc.tools.zoo.catalog import MODELS, Entry
from graphc.trainable import Trainable

Inputs = tuple[Tensor, ...]
CONTEXT = 64  # tokens in the key-value cache of a decoding step


@dataclass(frozen=True)
class Workload:
    """`build()` gives the network in evaluation mode, `inputs(batch)` a call's inputs, `calibration()` items of inputs,
    each a batch of one. `kind` says how it is best quantized: "static" (weights and activations, ahead of time), "text"
    (a transformer), "decode" (weights alone). `evaluate(run, limit, batch)` is the `metric` on real data, if there are.
    """

    name: str
    kind: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    calibration: Callable[[], list[Inputs]]
    evaluate: Callable[[Run, int | None, int | None], float] | None = None
    metric: str = ""

    def cost(self, batch: int) -> tuple[int, int]:
        """Multiplications and additions of one call, and how many weights they read (each once)."""
        network, inputs = self.build(), self.inputs(batch)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(*inputs)
        tables = (nn.Embedding, nn.LayerNorm, nn.BatchNorm2d)
        layers = (module for module in network.modules() if not isinstance(module, tables))
        weights = sum(weight.numel() for module in layers for weight in module.parameters(recurse=False))
        return int(counter.get_total_flops()), weights


def _of_zoo(name: str, kind: str, entry: Entry) -> Workload:
    calibration = lambda: list(entry.calibration(64, 1))  # noqa: E731
    return Workload(name, kind, entry.build, entry.example_inputs, calibration, entry.evaluate, entry.metric)


def _resnet50() -> nn.Module:
    """Random weights, with the statistics of real images in the normalizations: so activations stay in range."""
    torch.manual_seed(0)
    model = resnet.resnet50()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    with torch.no_grad():
        model.train()(*MODELS["resnet18"].example_inputs(8))
    return model.eval()


def _pruned() -> nn.Module:
    """As `graphc.tools.pruning` narrows it, 2.1 times fewer multiplications; training it changes no time."""
    entry = MODELS["resnet20_jpeg"]
    narrow = Pipeline(CLEAN).run(pruning.pruned("resnet20_jpeg", pruning.traced(entry)))
    return Trainable(narrow).eval()


def decode_tokens(seed: int) -> Tensor:
    """Random tokens of a step's context, and the step's own token at last: [CONTEXT + 1]."""
    return torch.randint(gpt.VOCABULARY, (CONTEXT + 1,), generator=torch.Generator().manual_seed(seed))


def _decode_inputs(seeds: Sequence[int]) -> list[Inputs]:
    network = gpt.random_step()
    found: list[Inputs] = []
    for seed in seeds:
        *context, token = decode_tokens(seed)
        found.append((token.view(1, 1), torch.tensor([CONTEXT]), *gpt.past(network, torch.stack(context))))
    return found


def _gemm_inputs(seed: int) -> Inputs:
    return (torch.randn(1024, 1024, generator=torch.Generator().manual_seed(seed)),)


def _gemm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(1024, 1024, bias=False).eval()


_IMAGES, _SMALL = MODELS["resnet18"], MODELS["resnet20_jpeg"]

WORKLOADS = {
    work.name: work
    for work in (
        _of_zoo("resnet18", "static", _IMAGES),
        Workload("resnet50", "static", _resnet50, _IMAGES.example_inputs, lambda: list(_IMAGES.calibration(64, 1))),
        _of_zoo("mobilenet_v2", "static", MODELS["mobilenet_v2"]),
        _of_zoo("resnet20", "static", _SMALL),
        Workload("resnet20_pruned", "static", _pruned, _SMALL.example_inputs, lambda: list(_SMALL.calibration(64, 1))),
        _of_zoo("minilm", "text", MODELS["minilm"]),
        Workload(
            "decode",
            "decode",
            gpt.random_step,
            lambda batch: _decode_inputs([0])[0],
            lambda: _decode_inputs(range(1, 5)),
        ),
        Workload(
            "gemm", "static", _gemm, lambda batch: _gemm_inputs(0), lambda: [_gemm_inputs(seed) for seed in range(1, 9)]
        ),
    )
}

# What a batch above one means something for.
BATCHED = ("resnet18", "resnet50", "mobilenet_v2")
