"""Recovery of a compressed graph: what its formats store learns, until it answers as the original does.

The weight that a `linear` or `vector` expression stands for is trained behind it, and rounded anew in each step, with
straight-through gradients: to scales as in graphc.training.fake_quantization (LSQ), to codewords as in
graphc.training.vectors. Of other formats, and beside them, what is stored in f32 is trained: factors of low rank,
biases, normalizations. What is stored takes the bytes that it took.

    recovered = recover(original, compressed, batches, Training(200, 1e-3))
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from graphc import formats
from graphc.encoding.grid import Grid
from graphc.formats import Stored
from graphc.formats.linear import Linear
from graphc.formats.vector import Vector
from graphc.graph import Graph
from graphc.progress import Progress, silent
from graphc.trainable import Trainable
from graphc.training import straight_through
from graphc.training.distillation import Distillation, DistillationLoss, decoded_weights
from graphc.training.fake_quantization import LAYERS, StepSize
from graphc.training.loop import Batch, Training, train
from graphc.training.stored_weight import LATENT, expressed
from graphc.training.vectors import Codebook, VectorTraining, VectorWeight

aten = torch.ops.aten


class LinearWeight(nn.Module):
    """The parametrization of a weight [O, ...] by integers times scales, which are trained."""

    def __init__(self, name: str, form: Linear, scale: Tensor, zero: Tensor) -> None:
        """scale, zero: f32 [rows, groups, 1], or of fewer rows or groups, which are shared."""
        super().__init__()
        self.name, self.format, self.top = name, form, 2**form.bits - 1
        self.step, self.groups = StepSize(scale), scale.numel()
        self.zero: Tensor
        self.register_buffer("zero", zero)

    def forward(self, latent: Tensor) -> Tensor:
        grouped = self._grouped(latent)
        scale = self.step(grouped.numel() // self.groups, self.top // 2)
        steps = (grouped / torch.where(scale == 0, torch.inf, scale)).clamp(-self.zero, self.top - self.zero)
        decoded: Tensor = straight_through.rounded(steps) * scale
        return decoded.reshape(latent.shape)

    @torch.no_grad()
    def parts(self, latent: Tensor) -> dict[str, Tensor]:
        """What the format stores."""
        scale: Tensor = self.step().to(torch.float16 if self.format.scale == "f16" else torch.float32)
        grid = Grid(scale.to(torch.float32), self.zero, self.top)
        return self.format.parts(grid.codes(self._grouped(latent)).flatten(1), grid)

    def _grouped(self, latent: Tensor) -> Tensor:
        rows = latent.flatten(1)
        group = rows.shape[1] if isinstance(self.format.group, str) else self.format.group
        grouped: Tensor = rows.unflatten(1, (-1, group))
        return grouped


def recover(
    original: Graph,
    compressed: Graph,
    batches: Callable[[int], Batch],
    training: Training,
    options: Distillation | None = None,
    metric: Callable[[Graph], float] | None = None,
    progress: Progress = silent,
) -> Graph:
    """A graph of the same formats and bytes, trained towards the original's results on `batches(step)`.

    compressed: what passes such as `compress` made of `original`, whose layers have the names that they had. options:
    None is the squared error of all floating results, whatever they stand for, over the original's squares. metric: of
    the graph as it would be stored, shown as progress. With a checkpoint in `training` a killed run goes on to the same
    result. Raises TrainingError where the loss is no number, and for a checkpoint of another run.
    """
    module = recoverable(original, compressed)
    shown = None if metric is None else lambda: metric(expressed(module))
    loss = _SquaredError(module, original) if options is None else DistillationLoss(module, original, options)
    train(module, loss, batches, training, shown, progress)
    return expressed(module)


class _SquaredError:
    """loss(batch) -> scalar; a batch is the flat inputs."""

    def __init__(self, student: Trainable, teacher: Graph) -> None:
        self._student, self._teacher = student, teacher

    def __call__(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            answers = self._teacher.run_flat(batch)
        loss = torch.zeros(())
        for given, answer in zip(self._student.run_flat(batch), answers, strict=True):
            if answer.is_floating_point():
                loss = loss + (given - answer).square().mean() / answer.square().mean().clamp(min=1e-20)
        return loss


def recoverable(original: Graph, compressed: Graph) -> Trainable:
    """A Trainable of the compressed graph, with weights of `original` behind the formats that round them."""
    graph = compressed.clone()
    floats = {node.name: original.weight(node.args[1]) for node in original.calls if node.target in LAYERS}
    found: dict[fx.Node, tuple[str, Stored, Tensor]] = {}  # by decoding: the weight's name, its form, its value
    for layer in graph.calls:
        weight = floats.get(layer.name) if layer.target in LAYERS else None
        decoding = layer.args[1] if weight is not None else None
        if not isinstance(decoding, fx.Node) or decoding in found:
            continue
        stored = formats.recognize(decoding.args[0] if decoding.target is aten.view.default else decoding)  # type: ignore[arg-type]
        if weight is not None and stored is not None and isinstance(stored.format, Linear | Vector):
            name = str(stored.parts["codes"].target).removesuffix(".codes")
            found[decoding] = (f"{name}{LATENT}", stored, weight)
    for decoding, (name, _, weight) in found.items():
        with graph.at(decoding):
            decoding.replace_all_uses_with(graph.add_weight(name, weight))
    parts = {name: {part: graph.weights[str(node.target)] for part, node in stored.parts.items()}
             for name, stored, _ in found.values()}  # fmt: skip
    graph.drop_unused()
    module = Trainable(graph, decoded_weights(graph))
    codebooks: dict[int, Codebook] = {}  # a shared one is one tensor under several names
    for name, stored, _ in found.values():
        latent = module.weight(name)
        place = next(place for place, value in module.named_parameters() if value is latent)
        if isinstance(stored.format, Vector):
            value = parts[name]["codebook"]
            if id(value) not in codebooks:
                codebooks[id(value)] = Codebook(value.to(torch.float32), trained=True)
            options = VectorTraining(stored.format, "euclidean")
            made: nn.Module = VectorWeight(name, options, stored.format, codebooks[id(value)])
        else:
            made = _linear(name, stored.format, parts[name])  # type: ignore[arg-type]
            with torch.no_grad():
                latent.copy_(_kept(latent, made, stored.format, parts[name]))  # type: ignore[arg-type]
        parametrize.register_parametrization(module, place, made)
    return module


def _linear(name: str, form: Linear, parts: dict[str, Tensor]) -> LinearWeight:
    scale = parts["scale"].to(torch.float32).unsqueeze(-1)
    zero = torch.full_like(scale, 2 ** (form.bits - 1))
    if not form.symmetric:
        zero = parts["zero_point"].to(torch.float32).unsqueeze(-1)
    return LinearWeight(name, form, scale, zero)


def _kept(weight: Tensor, made: LinearWeight, form: Linear, parts: dict[str, Tensor]) -> Tensor:
    """The weight; but where its code was chosen by more than nearness, what it was decoded to."""
    decoded = form.decode(parts, (len(weight), weight[0].numel())).reshape(weight.shape)
    return torch.where((made(weight) - decoded).abs() <= 1e-6 * decoded.abs(), weight, decoded)
