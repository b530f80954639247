"""What an exported program may hold: operators of a static, functional, real-valued graph."""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from graphc.errors import Unsupported, UnsupportedOperatorError
from graphc.frontends.provenance import module_path
from graphc.tensor_type import DTYPE_NAMES

_CHECKS = ("_assert", "sym_constrain")


def check_operators(program: ExportedProgram) -> None:
    """Raise UnsupportedOperatorError with all operators that have no place in a static, real-valued graph."""
    found: list[Unsupported] = []
    for node in program.graph.nodes:
        operator = node.args[1] if str(node.target) == "with_effects" else node.target
        if node.op != "call_function" or is_check(node) or not isinstance(operator, OpOverload | HigherOrderOperator):
            continue
        value = node.meta.get("val")
        dtypes = {leaf.dtype for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)}
        strange = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes - set(DTYPE_NAMES))
        if operator is not node.target:
            hint = "it may fail at run time, which a compiled model cannot"
        elif isinstance(operator, HigherOrderOperator):
            hint = "control flow has no fixed graph; use torch.where, or move the decision out of the model"
        elif strange:
            hint = f"computes in {', '.join(strange)}; graphc takes {', '.join(DTYPE_NAMES.values())}"
        elif free_unbacked_symbols(value) and operator is not torch.ops.aten.sym_size.int:
            hint = "its result or its size depends on the values of a tensor; let a fixed bound decide instead"
        else:
            continue
        found.append(Unsupported(node.name, str(operator), module_path(node), hint))
    if found:
        raise UnsupportedOperatorError("graphc", found)


def is_check(node: fx.Node) -> bool:
    """Whether a node is a run-time check that torch.export inserts: the artifact checks shapes and dtypes itself."""
    return any(check in str(node.target) for check in _CHECKS)
