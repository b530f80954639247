"""Kernel templates: each writes the loop nest of one kind of fused group.

A template is a module with

    NAME                                a word for reports
    OPERATORS                           names of the anchors that it is made for
    matches(group, isa) -> str | None   None where it takes the group, else why it does not
    emit(group, k)                      writes the body of the kernel into the builder `k`

Templates are tried in the order of TEMPLATES; the first that matches writes the kernel, so a template for one chip goes
in front of the general one. `elementwise` stands last: it takes whatever index functions describe.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import fx

from graphc.backends.tvm.groups import Group
from graphc.backends.tvm.index_functions.arithmetic import TRANSCENDENTAL
from graphc.backends.tvm.index_functions.gathers import selects_by_truth
from graphc.backends.tvm.instruction_sets import InstructionSet
from graphc.backends.tvm.kernel import KernelBuilder
from graphc.backends.tvm.operations import TVM_DTYPES, dtype_of, name_of, operands
from graphc.backends.tvm.templates import (
    amx_convolution,
    amx_matrix_product,
    attention,
    block_expansion,
    codeword_product,
    compressed_product,
    concatenation,
    convolution,
    depthwise,
    depthwise_dots,
    dynamic_quantization,
    elementwise,
    gap_expansion,
    matrix_product,
    normalization,
    partial_products,
    pooling,
    reduction,
    scan,
    sparse_product,
    table_lookup,
    vector_product,
    winograd,
)
from graphc.operators import DECODINGS
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
        depthwise_dots,
        depthwise,
        amx_convolution,
        winograd,
        convolution,
        compressed_product,
        amx_matrix_product,
        sparse_product,
        codeword_product,
        vector_product,
        matrix_product,
        partial_products,
        table_lookup,
        attention,
        pooling,
        normalization,
        reduction,
        scan,
        concatenation,
        dynamic_quantization,
        block_expansion,
        gap_expansion,
        elementwise,
    )
)

# Those that multiply by AMX.
TILED = tuple(cast(Template, module) for module in (amx_convolution, amx_matrix_product))

# Operators whose weights may be float16.
READS_HALF = DECODINGS | {torch.ops.graphc.partial_products.default}


def select(group: Group, isa: InstructionSet) -> Template | None:
    """The first template that takes the group."""
    return next((template for template in TEMPLATES if template.matches(group, isa) is None), None)


def without_tiles(group: Group, isa: InstructionSet) -> str:
    """Why a product is left to vectors on a target with AMX; empty where it is not, and on other targets."""
    if group.anchor is None or group.absorbed or not isa.target.has("amx-tile"):
        return ""
    reasons = [t.matches(group, isa) for t in TILED if name_of(group.anchor) in t.OPERATORS]
    return f"not by AMX: {reasons[0]}" if reasons and reasons[0] else ""


def unsupported(node: fx.Node, isa: InstructionSet) -> str | None:
    """Why no kernel computes this node; None where one does."""
    for value in (node, *operands(node)):
        kind = value.meta["type"]
        if isinstance(kind, TensorType) and kind.dtype not in TVM_DTYPES:
            return f"no kernel takes {str(kind.dtype).removeprefix('torch.')}; convert it to f32"
    if dtype_of(node) == "float16" or (
        any(dtype_of(value) == "float16" for value in operands(node)) and node.target not in READS_HALF
    ):
        return "no kernel takes float16; convert it to f32"
    if selects_by_truth(node):
        return "a boolean mask selects as many elements as it holds true: use where or masked_fill"
    if name_of(node) in TRANSCENDENTAL and dtype_of(node) == "float64":
        return "no kernel computes this function of float64; convert it to f32"
    group = Group((node,))
    if select(group, isa) is not None:
        return None
    reasons = [template.matches(group, isa) for template in TEMPLATES if name_of(node) in template.OPERATORS]
    return "; ".join(dict.fromkeys(reason for reason in reasons if reason)) or "no kernel computes this operator"
