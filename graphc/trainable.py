"""A Graph as a torch module that trains: its floating weights are parameters, and a Graph comes back out.

>>> module = Trainable(graph).train()
>>> loss = module(x).square().mean()
>>> loss.backward()
>>> trained = module.graph()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from graphc.graph import Graph, arguments

aten = torch.ops.aten
_BATCH_NORMS = (aten._native_batch_norm_legit_no_training.default, aten.batch_norm.default)  # as traced, as canonical


class Trainable(nn.Module):
    """The computation of a graph over parameters of its own; called as the graph's model is.

    Parameters are copies of all floating weights but those whose name matches `frozen` (shell patterns), running means
    and variances, and masks (which hold infinities); these, and integers, are buffers. Each is named as the node that
    reads it. One that is stored in fewer than 32 bits is trained in 32, and rounded wherever it is read. In training
    mode batch normalization uses the batch's statistics and updates the running ones, as in torch; in evaluation mode,
    where a module starts, it is what the graph says. Under torch.autocast products are computed in its dtype.
    """

    def __init__(self, graph: Graph, frozen: Sequence[str] = ()) -> None:
        super().__init__()
        self._source = graph
        self._running = graph.clone()
        self._places: dict[str, str] = {}  # name of a weight -> name of its parameter or buffer
        self._stored: dict[str, torch.dtype] = {}  # name of a parameter's weight -> its type
        self._decoded: set[str] = set()  # names of those in fewer than 32 bits that only operators of graphc read
        statistics = {
            str(used.target)
            for node in graph.calls
            if node.target in _BATCH_NORMS
            for used in arguments(node)[3:5]
            if isinstance(used, fx.Node) and used.op == "get_attr"
        }
        for node in graph:
            name = str(node.target)
            if node.op != "get_attr" or name in self._places:
                continue
            # Attributes of nn.Module, such as "training", would be hidden by a weight of that name.
            place = self._places[name] = f"{node.name}_" if hasattr(self, node.name) else node.name
            value = graph.weights[name].detach().clone()
            trained = value.is_floating_point() and name not in statistics and bool(value.isfinite().all())
            if trained and not any(fnmatch(name, pattern) for pattern in frozen):
                self._stored[name] = value.dtype
                readers = (user for other in graph if other.target == name for user in other.users)
                if value.dtype.itemsize < 4 and all(str(user.target).startswith("graphc.") for user in readers):
                    self._decoded.add(name)
                self.register_parameter(place, nn.Parameter(value.to(torch.promote_types(value.dtype, torch.float32))))
            else:
                self.register_buffer(place, value)
        replaced: dict[Any, Callable[..., Any]] = {aten.convolution.default: _convolution}
        replaced |= {_BATCH_NORMS[0]: self._native, _BATCH_NORMS[1]: self._norm}
        for node in self._running.calls:
            node.target = replaced.get(node.target, node.target)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The results for one call's inputs, as `Graph.run` gives them."""
        leaves = self._running.tensors(self._running.inputs.flatten_call(args, kwargs))
        return self._running.outputs.unflatten(self.run_flat(leaves))

    def run_flat(self, leaves: Sequence[Tensor], observe: Callable[[fx.Node, Any], None] | None = None) -> list[Tensor]:
        """The flat results; `observe(node, value)` sees each operator's result, with its gradient's history."""
        self._running.weights = {name: self._read(name) for name in self._places}
        return self._running.run_flat(leaves, observe)

    def weight(self, name: str) -> Tensor:
        """The parameter or buffer of one of the graph's weights."""
        value: Tensor = getattr(self, self._places[name])
        return value

    def parametrize(self, name: str, made: nn.Module) -> None:
        """Let the parameter of a weight be what `made` computes of the one that is trained from now on."""
        parametrize.register_parametrization(self, self._places[name], made)

    def graph(self) -> Graph:
        """The graph with the weights as they are now, in copies."""
        result = self._source.clone()
        for name in self._places:
            value = self.weight(name).detach()
            result.weights[name] = value.to(self._stored.get(name, value.dtype)).cpu().clone()
        return result

    def _read(self, name: str) -> Tensor:
        """The value as it is stored; for operators that decode in 32 bits, in which small gradients do not vanish."""
        value = self.weight(name)
        stored = value.to(self._stored.get(name, value.dtype))
        return value + (stored.to(value.dtype) - value).detach() if name in self._decoded else stored

    def _native(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, momentum: float,
        epsilon: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        if not self.training:
            result: tuple[Tensor, Tensor, Tensor] = _BATCH_NORMS[0](x, weight, bias, mean, variance, momentum, epsilon)
            return result
        # The native function updates the running statistics in place; they are buffers here.
        trained: tuple[Tensor, Tensor, Tensor] = torch.native_batch_norm(
            x, weight, bias, mean, variance, True, momentum, epsilon
        )
        return trained

    def _norm(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, variance: Tensor, training: bool,
        momentum: float, epsilon: float, cudnn: bool,
    ) -> Tensor:  # fmt: skip
        return self._native(x, weight, bias, mean, variance, momentum, epsilon)[0]


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, *geometry: Any) -> Tensor:
    """torch's autocast on a CPU knows conv1d, conv2d and conv3d, but not this operator, which they become."""
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    result: Tensor = aten.convolution.default(x, weight, bias, *geometry)
    return result
