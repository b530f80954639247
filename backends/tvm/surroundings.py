"""What a kernel may know of the graph around it, the values of weights included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx

from graphc.backends.tvm import brain_float
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.operations import shape_of, type_of, widened
from graphc.backends.tvm.placement import Placement
from graphc.backends.tvm.sizes import Ranges
from graphc.graph import concrete


@dataclass(frozen=True)
class Surroundings:
    """The instruction set, the sizes, where values lie, and what is known before the first run."""

    isa: InstructionSet
    ranges: Ranges
    places: Mapping[fx.Node, Placement]
    weights: Mapping[str, torch.Tensor]
    at_load: frozenset[fx.Node]  # values that depend on weights only
    looked_up: frozenset[fx.Node]  # stored parts of weights that embeddings read where they lie
    tuned: Mapping[str, Mapping[str, int]]  # template parameters by workload

    def array(self, node: fx.Node) -> np.ndarray[Any, Any] | None:
        """The value of a weight, or of a view of one; None where it is not known at compile time."""
        source = widened(node)
        if source is not None:
            bits = self.array(source)
            return None if bits is None else brain_float.widen_array(bits)
        place = self.places[node]
        if place.owner.op != "get_attr":
            return None
        tensor = self.weights[str(place.owner.target)].detach().contiguous()
        if tensor.dtype is torch.bfloat16:
            tensor = tensor.view(torch.uint16)
        offset = tensor.storage_offset() + int(place.offset)  # a weight may be a part of a larger tensor
        return torch.as_strided(tensor, shape_of(node), place.strides, offset).numpy()

    def known(self, node: fx.Node) -> np.ndarray[Any, Any] | None:
        """The same, also of integers that are computed from weights alone: they are exact, whoever computes them."""
        if node.op == "call_function" and node in self.at_load and not type_of(node).dtype.is_floating_point:
            return self.stored(node)
        return self.array(node)

    def stored(self, node: fx.Node) -> np.ndarray[Any, Any]:
        """The value of what depends on weights alone, computed now: for templates that pack it in their own way."""
        return self._evaluate(node).detach().contiguous().numpy()

    def _evaluate(self, node: fx.Node) -> torch.Tensor:
        if node.op == "get_attr":
            return self.weights[str(node.target)]
        args, kwargs = concrete((node.args, node.kwargs), self._evaluate, {})
        result: torch.Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
        return result
