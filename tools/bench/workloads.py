"""What the bench runs: networks with their inputs and calibration data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from graphc.tools.zoo import gpt, resnet
from graphc.tools.zoo.catalog import MODELS, Entry

Inputs = tuple[Tensor, ...]
CONTEXT = 64  # tokens in the key-value cache of a decoding step


@dataclass(frozen=True)
class Workload:
    """`build()` gives the network in evaluation mode, `inputs(batch)` a call's inputs, `calibration()` such inputs with
    a batch of one. `kind` is "vision", "text" or "decode": it says which precisions and settings suit."""

    name: str
    kind: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], Inputs]
    calibration: Callable[[], list[Inputs]]
    batches: tuple[int, ...] = (1,)

    def operations(self, batch: int) -> int:
        """Multiplications and additions of one call."""
        network = self.build()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(*self.inputs(batch))
        return int(counter.get_total_flops())


def _of_zoo(name: str, kind: str, entry: Entry, batches: tuple[int, ...] = (1,)) -> Workload:
    return Workload(name, kind, entry.build, entry.example_inputs, lambda: list(entry.calibration(128, 1)), batches)


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


_IMAGES = MODELS["resnet18"]

WORKLOADS = {
    work.name: work
    for work in (
        _of_zoo("resnet18", "vision", _IMAGES, (1, 8)),
        Workload(
            "resnet50", "vision", _resnet50, _IMAGES.example_inputs, lambda: list(_IMAGES.calibration(64, 1)), (1, 8)
        ),
        _of_zoo("mobilenet_v2", "vision", MODELS["mobilenet_v2"], (1, 8)),
        _of_zoo("resnet20", "vision", MODELS["resnet20_jpeg"]),
        _of_zoo("minilm", "text", MODELS["minilm"]),
        Workload(
            "decode", "decode", gpt.random_step, lambda batch: _decode_inputs([0])[0],
            lambda: _decode_inputs(range(1, 5)),
        ),
    )
}  # fmt: skip
