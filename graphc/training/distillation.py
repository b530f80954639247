"""Recovery by distillation: a compressed or pruned graph learns to answer as the original does; labels are optional.

logits      T^2 KL(softmax(teacher / T) || softmax(student / T))    (Hinton et al., "Distilling the Knowledge in a
            Neural Network", 2015, section 2)
features    mean squared error at named nodes, over the teacher's mean square (Romero et al., "FitNets", 2015)
embedding   1 - cosine of the two results, each sample's flattened (S-SONDO, arXiv 2604.24933)
labels      cross entropy against labels, which then are the last tensor of a batch

Features and embeddings of a narrower student are compared through a linear map of its channels, which is trained with
it and then thrown away (the regressor of FitNets, section 2.2; the projection head of S-SONDO).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphc.errors import TrainingError
from graphc.graph import Graph
from graphc.progress import Progress, silent
from graphc.tensor_type import TensorType
from graphc.trainable import Trainable
from graphc.training.loop import Batch, Training, train
from graphc.training.stored_weight import compressed_trainable

_EMBEDDING = "a result"  # no node has this name


@dataclass(frozen=True)
class Distillation:
    """The weights of the terms. nodes: names that both graphs have, for `features`; result: which flat result is the
    logits or the embedding. precision: what both networks compute their products in; bf16 takes half the time where
    the processor multiplies it."""

    logits: float = 1.0
    temperature: float = 4.0
    features: float = 0.0
    nodes: tuple[str, ...] = ()
    embedding: float = 0.0
    labels: float = 0.0
    result: int = 0
    precision: Literal["f32", "bf16"] = "f32"

    def __post_init__(self) -> None:
        weights = (self.logits, self.features, self.embedding, self.labels)
        if min(weights) < 0 or max(weights) == 0 or self.temperature <= 0:
            raise TrainingError(f"{self}: weights must not be negative nor all nought, the temperature positive")
        if bool(self.features) != bool(self.nodes):
            raise TrainingError("features need both a weight and the nodes that they are compared at")


class Student(Protocol):
    """What learns: a Trainable, or a graph that is quantized while it trains."""

    def run_flat(
        self, leaves: Sequence[Tensor], observe: Callable[[fx.Node, Any], None] | None = None
    ) -> list[Tensor]: ...

    def graph(self) -> Graph: ...


class LinearMap(nn.Module):
    """y = A x along one dimension: A f32 [wanted, given], orthogonal at first."""

    def __init__(self, dimension: int, given: int, wanted: int, generator: torch.Generator) -> None:
        super().__init__()
        self._dimension = dimension
        self.matrix = nn.Parameter(torch.empty(wanted, given))
        nn.init.orthogonal_(self.matrix, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.movedim(self._dimension, -1), self.matrix).movedim(-1, self._dimension)


class DistillationLoss:
    """loss(batch) -> scalar; a batch is the graphs' flat inputs and, with a weight on `labels`, int64 labels.

    maps: what is trained beside the student, one for each compared value that is as wide as the teacher's in all
    dimensions but one; `seed` gives their first weights. Raises TrainingError for values that cannot be compared.
    """

    def __init__(self, student: Student, teacher: Graph, options: Distillation, seed: int = 0) -> None:
        self._student, self._teacher, self._options = student, Trainable(teacher), options
        self._inputs = len(teacher.placeholders)
        self._map: dict[str, LinearMap] = {}
        generator = torch.Generator().manual_seed(seed)
        theirs = {node.name: node for node in teacher.calls}
        graph = student.graph()
        ours = {node.name: node for node in graph.calls}
        for name in options.nodes:
            if name not in theirs or name not in ours:
                both = ", ".join(known for known in theirs if known in ours)
                raise TrainingError(f"features at %{name}: no node of both graphs; these are: {both}")
            self._compare(f"features at %{name}", name, ours[name], theirs[name], generator)
        if options.embedding:
            our, their = (_result(each, options.result) for each in (graph, teacher))
            self._compare(f"embedding, result {options.result}", _EMBEDDING, our, their, generator)
        self.maps = nn.ModuleList(self._map.values())

    def _compare(self, what: str, key: str, ours: fx.Node, theirs: fx.Node, generator: torch.Generator) -> None:
        """Make the map that a value needs, if any."""
        given, wanted = ours.meta["type"], theirs.meta["type"]
        alike = isinstance(given, TensorType) and isinstance(wanted, TensorType)
        alike = alike and given.dtype == wanted.dtype and len(given.shape) == len(wanted.shape)
        sizes = list(zip(given.shape, wanted.shape, strict=True)) if alike else []
        differ = [place for place, (our, their) in enumerate(sizes) if our != their]
        narrower = len(differ) == 1 and differ[0] > 0 and all(isinstance(size, int) for size in sizes[differ[0]])
        if not alike or (differ and not narrower):
            raise TrainingError(
                f"{what}: {given} against the teacher's {wanted}; a linear map brings together what differs in one "
                "dimension, not the first: name a node that the compression left as it was, or narrowed"
            )
        if narrower:
            self._map[key] = LinearMap(differ[0], *sizes[differ[0]], generator)

    def _mapped(self, key: str, value: Tensor) -> Tensor:
        result: Tensor = self._map[key](value.float()) if key in self._map else value.float()
        return result

    def __call__(self, batch: Batch) -> Tensor:
        options, seen, known = self._options, _Features(self._options.nodes), _Features(self._options.nodes)
        if len(batch) != self._inputs + bool(options.labels):
            wanted = f"{self._inputs} inputs" + (" and the labels" if options.labels else "")
            raise TrainingError(f"a batch has {len(batch)} tensors; expected {wanted}")
        leaves = batch[: self._inputs]
        with torch.autocast("cpu", torch.bfloat16) if options.precision == "bf16" else nullcontext():
            given = self._student.run_flat(leaves, seen)[options.result].float()
            answer = given.detach()
            if options.logits or options.nodes or options.embedding:  # else nothing is asked of the teacher
                with torch.no_grad():
                    answer = self._teacher.run_flat(leaves, known)[options.result].float()
        loss = torch.zeros(())
        if options.logits:
            loss = loss + options.logits * divergence(given, answer, options.temperature)
        for name in options.nodes:
            ours, theirs = self._mapped(name, seen.values[name]), known.values[name].float()
            loss = loss + options.features * F.mse_loss(ours, theirs) / theirs.square().mean().clamp(min=1e-12)
        if options.embedding:
            embedding = self._mapped(_EMBEDDING, given)
            cosine = F.cosine_similarity(embedding.flatten(1), answer.flatten(1), dim=1)
            loss = loss + options.embedding * (1 - cosine).mean()
        if options.labels:
            loss = loss + options.labels * F.cross_entropy(given.flatten(0, -2), batch[-1].flatten())
        return loss


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of logits [..., classes], the mean over all but the last dimension."""
    log_ours = (student / temperature).log_softmax(-1).flatten(0, -2)
    log_theirs = (teacher / temperature).log_softmax(-1).flatten(0, -2)
    return temperature**2 * F.kl_div(log_ours, log_theirs, reduction="batchmean", log_target=True)


def distill(
    student: Graph | Trainable,
    teacher: Graph,
    batches: Callable[[int], Batch],
    distillation: Distillation | None = None,
    training: Training | None = None,
    metric: Callable[[Graph], float] | None = None,
    progress: Progress = silent,
) -> Graph:
    """The student after training towards the teacher: a new graph, or the Trainable's own, trained in place.

    Of a student with compressed weights, all that is stored as floats is trained; codes stay (compressed_trainable).
    metric: of the student as it is, shown as progress. With a checkpoint in `training`, a killed run goes on to the
    same result. Raises TrainingError as DistillationLoss and graphc.training.loop.train do.

    >>> small = distill(pruned, original, Samples((images,), 64), Distillation(features=0.1, nodes=("relu_4",)))
    """
    options = training or Training(what="distilling")
    module = student if isinstance(student, Trainable) else compressed_trainable(student)
    loss = DistillationLoss(module, teacher, distillation or Distillation(), options.seed)
    trained = nn.ModuleDict({"student": module, "maps": loss.maps}) if len(loss.maps) else module
    shown = None if metric is None else lambda: metric(module.graph())
    train(trained, loss, batches, options, shown, progress)
    return module.graph()


def _result(graph: Graph, place: int) -> fx.Node:
    found: fx.Node = graph.output.args[0][place]  # type: ignore[index, assignment]
    return found


class _Features:
    """Observes a run, and keeps the values of some nodes."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = frozenset(names)
        self.values: dict[str, Any] = {}

    def __call__(self, node: fx.Node, value: Any) -> None:
        if node.name in self._names:
            self.values[node.name] = value
