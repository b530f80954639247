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

from graphc import formats
from graphc.encoding.grid import Grid
from graphc.expressions import Sum
from graphc.formats import Format, Stored
from graphc.formats.binary import Binary
from graphc.formats.linear import Linear
from graphc.formats.vector import Vector
from graphc.graph import Graph
from graphc.pipeline import Pipeline
from graphc.progress import Progress, silent
from graphc.trainable import Trainable
from graphc.training import straight_through
from graphc.training.distillation import Distillation, DistillationLoss
from graphc.training.fake_quantization import LAYERS, StepSize
from graphc.training.loop import Batch, Training, train
from graphc.training.stored_weight import LATENT, compressed_trainable, expressed
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
    """A Trainable of the compressed graph, in which all that is stored is trained, but for the places of kept values.

    What `linear`, `vector`, `binary` and sums of vectors decode to follows a weight in full precision, whose codes are
    found anew in each step: the one of `original` where it is a layer's whole weight, else (a term, a factor, the
    values of `sparse`) what it decodes to now, from which the signs of a product seldom turn. Of other formats the
    floats are trained (compressed_trainable).
    """
    graph = Pipeline("eliminate_common_subexpressions").run(compressed).clone()
    floats = {node.name: original.weight(node.args[1]) for node in original.calls if node.target in LAYERS}
    found: dict[str, tuple[Stored, dict[str, Tensor]]] = {}  # by latent weight: the form and its parts
    for decoding, stored in _rounding(graph):
        parts = {part: graph.weights[str(node.target)] for part, node in stored.parts.items()}
        rows, columns = decoding.meta["type"].shape
        whole = next((floats[layer.name] for layer in _layers(decoding) if floats.get(layer.name) is not None), None)
        weight = stored.format.decode(parts, (rows, columns)) if whole is None else whole.reshape(rows, columns)
        part, node = next(iter(stored.parts.items()))
        with graph.at(decoding):
            reading = graph.add_weight(f"{str(node.target).removesuffix(f'.{part}')}{LATENT}", weight)
        decoding.replace_all_uses_with(reading)
        found[str(reading.target)] = stored, parts
    graph.drop_unused()
    module = compressed_trainable(graph)
    codebooks: dict[int, Codebook] = {}  # a shared one is one tensor under several names
    for name, (stored, parts) in found.items():
        if isinstance(stored.format, Linear):
            made = _linear(name, stored.format, parts)
            latent = module.weight(name)
            with torch.no_grad():
                latent.copy_(_kept(latent, made, stored.format, parts))
            module.parametrize(name, made)
            continue
        read = [value for part, value in parts.items() if part.endswith("codebook")]
        for value in read:
            if id(value) not in codebooks:
                codebooks[id(value)] = Codebook(value.to(torch.float32), trained=not isinstance(stored.format, Binary))
        options = VectorTraining(_codewords(stored.format) or stored.format, "euclidean")
        module.parametrize(name, VectorWeight.of(name, options, [codebooks[id(value)] for value in read]))
    return module


def _rounding(graph: Graph) -> list[tuple[fx.Node, Stored]]:
    """The decodings of formats with codes, in order; those inside of another are a part of it."""
    found: list[tuple[fx.Node, Stored]] = []
    inside: set[fx.Node] = set()
    for node in reversed(list(graph.calls)):
        if node in inside:
            inside.update(node.all_input_nodes)
        elif (stored := formats.recognize(node)) and (isinstance(stored.format, Linear) or _codewords(stored.format)):
            found.append((node, stored))
            inside.update(node.all_input_nodes)
    return found[::-1]


def _layers(decoding: fx.Node) -> list[fx.Node]:
    """The layers of which it is the weight, as it is or in the shape of a convolution's."""
    shaped = [user for user in decoding.users if user.target is aten.view.default]
    return [user for node in (decoding, *shaped) for user in node.users if user.target in LAYERS]


def _codewords(form: Format) -> Format | None:
    """The vector format, or sum of them, that means the same."""
    match form:
        case Binary(scale):
            return Vector(d=1, codewords=2, scale=scale)
        case Vector():
            return form
        case Sum(terms) if all(isinstance(term, Vector) for term in terms):
            return form
    return None


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
