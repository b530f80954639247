"""What a kernel computes, as a line of text: the key under which tuned template parameters are kept.

Equal lines are equal work: the anchor with its types, memory orders and geometry, then the operators fused behind it.
Values (weights, zero points) do not belong to it, so that one entry serves every model with such a layer.

    matrix product: aten.linear.default(f32[1, 64], f32[10, 64], f32[10]) + aten.relu.default
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx

from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.operations import arguments, name_of, type_of
from graphc.backends.tvm.placement import Placement
from graphc.backends.tvm.sizes import Ranges, contiguous
from graphc.sizes import size_text
from graphc.tensor_type import DTYPE_NAMES, Size

# Arguments that are values rather than geometry.
_VALUES = frozenset({"x_zero", "input_zero", "output_zero"})


def workload(template: str, group: Group, places: Mapping[fx.Node, Placement], ranges: Ranges) -> str:
    """The line of a group that `template` lowers."""

    def size(value: Size) -> str:
        return str(value) if isinstance(value, int) else f"{size_text(value)}<={ranges.maximum(value)}"

    def argument(value: Any) -> str:
        if not isinstance(value, fx.Node):
            return str(value)
        kind = type_of(value)
        text = f"{DTYPE_NAMES[kind.dtype]}[{', '.join(map(size, kind.shape))}]"
        strides = places[value].strides if value in places else contiguous(kind.shape)
        return text if strides == contiguous(kind.shape) else f"{text} strides [{', '.join(map(size, strides))}]"

    core = group.anchor or group.output
    given = ", ".join(argument(value) for name, value in arguments(core).items() if name not in _VALUES)
    rest = [name_of(node) for node in group.nodes if node is not core]
    decoded = [f"{name_of(node)}{[item for item in node.args if isinstance(item, int)]}" for node in group.absorbed]
    return " + ".join([f"{template}: {name_of(core)}({given})", *decoded, *rest])
