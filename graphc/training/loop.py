"""The training loop: every step is a function of its number and the seed, so that a killed run goes on bit for bit.

Batches are asked for by the step's number; random numbers are seeded anew in each step; the learning rate is a function
of the step. All that must be kept is the parameters, the optimizer's moments and the number of steps done: one
safetensors file, its JSON in the header, written beside its place and renamed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from graphc import container
from graphc.errors import TrainingError
from graphc.memory import kept_memory
from graphc.progress import Progress, silent

Batch = Sequence[Tensor]
_SMOOTHING = 0.98  # of the loss that progress shows


@dataclass(frozen=True)
class Training:
    """How long and how fast to train.

    learning_rate: at its top; it rises over `warmup` steps and falls to nought along a cosine. rates: factors of it for
    the parameters whose name matches a shell pattern; the first match counts. clip: largest Euclidean norm of all
    gradients. checkpoint: a file that is written every `interval` steps and at the end, and from which a run with the
    same options goes on. what: the name that progress shows.
    """

    steps: int = 1000
    learning_rate: float = 1e-3
    optimizer: Literal["adam", "sgd"] = "adam"
    warmup: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 0.0
    clip: float = math.inf
    seed: int = 0
    checkpoint: Path | None = None
    interval: int = 200
    what: str = "training"

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("warmup", 0), ("interval", 1)):
            if getattr(self, name) < least:
                raise TrainingError(f"{name}={getattr(self, name)} must be at least {least}")
        if not self.learning_rate > 0 or not math.isfinite(self.learning_rate):
            raise TrainingError(f"learning_rate={self.learning_rate} must be a positive number")

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2

    def identity(self) -> str:
        """What a checkpoint must agree in, as JSON."""
        names = ("steps", "learning_rate", "optimizer", "warmup", "weight_decay", "clip", "seed")
        return json.dumps({name: getattr(self, name) for name in names} | {"rates": dict(self.rates)}, sort_keys=True)


@dataclass(frozen=True)
class Samples:
    """Batches of samples, each drawn once an epoch in an order of that epoch's own: `samples(step)` lists its tensors.

    tensors: [N, ...] each, such as the inputs and then the labels. augment: (tensors of a batch, generator) -> tensors.
    A last part of an epoch that fills no batch is left out.
    """

    tensors: tuple[Tensor, ...]
    batch: int
    seed: int = 0
    augment: Callable[[list[Tensor], torch.Generator], list[Tensor]] | None = None

    def __post_init__(self) -> None:
        count = min(map(len, self.tensors), default=0)
        if not 0 < self.batch <= count or any(len(tensor) != count for tensor in self.tensors):
            sizes = ", ".join(str(len(tensor)) for tensor in self.tensors)
            raise TrainingError(f"batches of {self.batch} cannot be drawn from tensors of {sizes or 'no'} samples")

    @property
    def steps_per_epoch(self) -> int:
        return len(self.tensors[0]) // self.batch

    def __call__(self, step: int) -> list[Tensor]:
        epoch, place = divmod(step, self.steps_per_epoch)
        chosen = _order(len(self.tensors[0]), self.seed, epoch)[place * self.batch : (place + 1) * self.batch]
        found = [tensor[chosen] for tensor in self.tensors]
        if self.augment is None:
            return found
        return self.augment(found, torch.Generator().manual_seed(_mixed(self.seed, step)))


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(_mixed(seed, epoch)))


def _mixed(seed: int, step: int) -> int:
    """One seed for a pair; neighbours of a pair must not give each other's numbers."""
    return (seed * 1_000_003 + step) % (1 << 62)


@kept_memory()
def train(
    module: nn.Module,
    loss: Callable[[Batch], Tensor],
    batches: Callable[[int], Batch],
    options: Training,
    metric: Callable[[], float] | None = None,
    progress: Progress = silent,
) -> None:
    """Train a module's parameters in place, in training mode: `loss(batches(step))` for each step.

    metric: what progress shows beside the loss, measured in evaluation mode with every checkpoint.
    Raises TrainingError where the loss is no number, and for a checkpoint that is damaged or of another run.
    """
    parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    if not parameters:
        raise TrainingError("nothing to train: the module has no parameters")
    optimizer, factors = _optimizer(parameters, options)
    first = _resume(module, optimizer, parameters, options)
    shown, measured, mode = math.nan, "", module.training
    module.train()
    for step in range(first, options.steps):
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = options.rate(step) * factor
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mixed(options.seed, step))
            value = loss(batches(step))
            optimizer.zero_grad()
            value.backward()
        now = float(value.detach())
        if not math.isfinite(now):
            raise TrainingError(f"the loss is {now} in step {step}: lower learning_rate={options.learning_rate}")
        if math.isfinite(options.clip):
            nn.utils.clip_grad_norm_(parameters.values(), options.clip)
        optimizer.step()
        shown = now if math.isnan(shown) else _SMOOTHING * shown + (1 - _SMOOTHING) * now
        if (step + 1) % options.interval == 0 or step + 1 == options.steps:
            if metric is not None:
                module.eval()
                measured = f", metric {metric():.4g}"
                module.train()
            _save(module, optimizer, parameters, options, step + 1)
        progress(f"{options.what}: loss {shown:.4g}{measured}", step + 1, options.steps)
    module.train(mode)


def _optimizer(parameters: Mapping[str, nn.Parameter], options: Training) -> tuple[torch.optim.Optimizer, list[float]]:
    """One group for each factor of the learning rate, and the factors."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        factor = next((factor for pattern, factor in options.rates.items() if fnmatch(name, pattern)), 1.0)
        groups.setdefault(factor, []).append(parameter)
    given = [{"params": members} for members in groups.values()]
    if options.optimizer == "sgd":
        sgd = torch.optim.SGD(given, options.learning_rate, momentum=0.9, weight_decay=options.weight_decay)
        return sgd, list(groups)
    return torch.optim.AdamW(given, options.learning_rate, weight_decay=options.weight_decay), list(groups)


# -- checkpoints ----------------------------------------------------------------------------------


def _save(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    options: Training,
    step: int,
) -> None:
    if options.checkpoint is None:
        return
    tensors = {f"module.{name}": value.detach().contiguous() for name, value in _state(module).items()}
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value).contiguous()
    header = {"step": str(step), "training": options.identity()}
    container.write(options.checkpoint, save(tensors, header))


def _resume(
    module: nn.Module, optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], options: Training
) -> int:
    """The number of steps done; the module and the optimizer are as they were then."""
    if options.checkpoint is None or not options.checkpoint.exists():
        return 0
    where = os.fspath(options.checkpoint)
    try:
        with safe_open(where, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise TrainingError(f"cannot read the checkpoint '{where}': {error}; delete it to start again") from None
    if header.get("training") != options.identity():
        raise TrainingError(
            f"the checkpoint '{where}' is of a run with {header.get('training')}, this one has {options.identity()}: "
            "use the same options, another file, or delete it to start again"
        )
    kept = {name.removeprefix("module."): value for name, value in tensors.items() if name.startswith("module.")}
    state = _state(module)
    if {name: value.shape for name, value in kept.items()} != {name: value.shape for name, value in state.items()}:
        raise TrainingError(f"the checkpoint '{where}' is of another network; delete it to start again")
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(kept[name])
    for name, parameter in parameters.items():
        moments = {}
        for full, value in tensors.items():
            kind, _, rest = full.partition(".")
            key, _, owner = rest.partition(".")
            if kind == "optimizer" and owner == name:
                moments[key] = value
        optimizer.state[parameter] = moments
    return int(header["step"])


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers; one that several modules share is there once."""
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
