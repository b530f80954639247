"""Recovery by distillation: a compressed or pruned graph learns to answer as the original does; labels are optional.

logits      T^2 KL(softmax(teacher / T) || softmax(student / T))    (Hinton et al., "Distilling the Knowledge in a
            Neural Network", 2015, section 2)
features    mean squared error at named nodes, over the teacher's mean square (Romero et al., "FitNets", 2015)
embedding   1 - cosine of the two results, each sample's flattened
labels      cross entropy against labels, which then are the last tensor of a batch
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from glob import escape
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from graphc.errors import TrainingError
from graphc.graph import Graph
from graphc.progress import Progress, silent
from graphc.trainable import Trainable
from graphc.training.loop import Batch, Training, train


@dataclass(frozen=True)
class Distillation:
    """The weights of the terms. nodes: names that both graphs have, for `features`; result: which flat result is the
    logits or the embedding."""

    logits: float = 1.0
    temperature: float = 4.0
    features: float = 0.0
    nodes: tuple[str, ...] = ()
    embedding: float = 0.0
    labels: float = 0.0
    result: int = 0

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


class DistillationLoss:
    """loss(batch) -> scalar; a batch is the graphs' flat inputs and, with a weight on `labels`, int64 labels."""

    def __init__(self, student: Student, teacher: Graph, options: Distillation) -> None:
        self._student, self._teacher, self._options = student, teacher, options
        self._inputs = len(teacher.placeholders)
        theirs = {node.name: node for node in teacher.calls}
        ours = {node.name: node for node in student.graph().calls}
        for name in options.nodes:
            if name not in theirs or name not in ours:
                both = ", ".join(known for known in theirs if known in ours)
                raise TrainingError(f"features at %{name}: no node of both graphs; these are: {both}")
            if theirs[name].meta["type"] != ours[name].meta["type"]:
                raise TrainingError(
                    f"features at %{name}: {ours[name].meta['type']} against the teacher's {theirs[name].meta['type']};"
                    " name a node that the compression left as wide as it was"
                )

    def __call__(self, batch: Batch) -> Tensor:
        options, seen, known = self._options, _Features(self._options.nodes), _Features(self._options.nodes)
        if len(batch) != self._inputs + bool(options.labels):
            wanted = f"{self._inputs} inputs" + (" and the labels" if options.labels else "")
            raise TrainingError(f"a batch has {len(batch)} tensors; expected {wanted}")
        leaves = batch[: self._inputs]
        answer = None
        if options.logits or options.nodes or options.embedding:
            with torch.no_grad():
                answer = self._teacher.run_flat(leaves, known)[options.result]
        given = self._student.run_flat(leaves, seen)[options.result]
        loss = torch.zeros(())
        if options.logits and answer is not None:
            loss = loss + options.logits * divergence(given, answer, options.temperature)
        for name in options.nodes:
            error = F.mse_loss(seen.values[name], known.values[name])
            loss = loss + options.features * error / known.values[name].square().mean().clamp(min=1e-12)
        if options.embedding and answer is not None:
            cosine = F.cosine_similarity(given.flatten(1), answer.flatten(1), dim=1)
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
    options: Distillation | None = None,
    training: Training | None = None,
    metric: Callable[[], float] | None = None,
    progress: Progress = silent,
) -> Graph:
    """The student after training towards the teacher: a new graph, or the Trainable's own, trained in place.

    Of a student with compressed weights, what is stored in f32 beside them is trained: biases and normalizations.
    """
    module = student if isinstance(student, Trainable) else Trainable(student, _decoded(student))
    train(
        module,
        DistillationLoss(module, teacher, options or Distillation()),
        batches,
        training or Training(what="distilling"),
        metric,
        progress,
    )
    return module.graph()


def _decoded(graph: Graph) -> list[str]:
    """Patterns of the weights that operators of graphc read, which have no gradient.

    Raises TrainingError where such an operator takes a value that depends on the inputs.
    """
    of_inputs: set[fx.Node] = set()
    frozen: set[str] = set()
    behind: dict[fx.Node, set[str]] = {}
    for node in graph:
        used = node.all_input_nodes
        behind[node] = {str(node.target)} if node.op == "get_attr" else set().union(*(behind[each] for each in used))
        if node.op == "placeholder" or any(each in of_inputs for each in used):
            of_inputs.add(node)
        if node.op == "call_function" and str(node.target).startswith("graphc."):
            if node in of_inputs:
                where = f" of layer '{node.meta['path']}'" if node.meta["path"] else ""
                raise TrainingError(
                    f"%{node.name}{where} is {node.target}, through which no gradient passes: train the graph before "
                    "its activations are quantized"
                )
            frozen |= behind[node]
    return [escape(name) for name in sorted(frozen)]


class _Features:
    """Observes a run, and keeps the values of some nodes."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = frozenset(names)
        self.values: dict[str, Any] = {}

    def __call__(self, node: fx.Node, value: Any) -> None:
        if node.name in self._names:
            self.values[node.name] = value
