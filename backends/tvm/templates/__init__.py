"""Kernel templates: each writes the loop nest of one kind of fused group.

A template is a module with

    NAME                                a word for reports
    OPERATORS                           names of the anchors that it is made for
    matches(group, isa) -> str | None   None where it takes the group, else why it does not
    emit(group, k)                      writes the body of the kernel into the builder `k`

Templates are tried in the order of TEMPLATES; the first that matches writes the kernel. The last ones take anything that
an index function or a plain loop nest describes, so specialised templates only ever replace, never extend, what runs.
"""

from __future__ import annotations

from typing import Protocol, cast

from torch import fx

from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import KernelBuilder
from graphc.backends.tvm.operations import TVM_DTYPES, name_of, operands
from graphc.backends.tvm.templates import (
    attention,
    concatenation,
    convolution,
    depthwise,
    elementwise,
    matrix_product,
    normalization,
    pooling,
    reduction,
    scan,
)
from graphc.tensor_type import TensorType


class Template(Protocol):
    """What a template module offers."""

    NAME: str
    OPERATORS: tuple[str, ...]

    def matches(self, group: Group, isa: InstructionSet) -> str | None: ...

    def emit(self, group: Group, k: KernelBuilder) -> None: ...


TEMPLATES: tuple[Template, ...] = tuple(
    cast(Template, module)
    for module in (
        depthwise,
        convolution,
        matrix_product,
        attention,
        pooling,
        normalization,
        reduction,
        scan,
        concatenation,
        elementwise,
    )
)


def select(group: Group, isa: InstructionSet) -> Template | None:
    """The first template that takes the group."""
    return next((template for template in TEMPLATES if template.matches(group, isa) is None), None)


def unsupported(node: fx.Node, isa: InstructionSet) -> str | None:
    """Why no kernel computes this node; None where one does."""
    for value in (node, *operands(node)):
        kind = value.meta["type"]
        if isinstance(kind, TensorType) and kind.dtype not in TVM_DTYPES:
            return f"no kernel takes {kind}; convert it to f32"
    group = Group((node,))
    if select(group, isa) is not None:
        return None
    reasons = [template.matches(group, isa) for template in TEMPLATES if name_of(node) in template.OPERATORS]
    return "; ".join(reason for reason in reasons if reason) or "no kernel computes this operator"
