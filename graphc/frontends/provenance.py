"""Where things come from, in the user's words: the layer of a node, the layer and line that stopped an export."""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence

import torch
from torch import fx, nn


def module_path(node: fx.Node) -> str:
    """The user's module path of a node: "layer1.0.conv1"."""
    stack = [entry[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]
    path = stack[-1] if stack and not stack[-1].startswith("_empty_nn_module_stack") else ""
    return str(path).replace("L['self']", "").replace("['", ".").replace("']", "").lstrip(".")


def explain(model: nn.Module, failures: Sequence[Exception]) -> str:
    """What stopped the export, in the user's layer and line."""
    layer, line = _place(model, failures[0])
    where = (f" in layer '{layer}'" if layer else "") + (f" ({line})" if line else "")
    text = str(failures[0]).strip()
    first = text.splitlines()[0] if text else type(failures[0]).__name__
    hint = ""
    if any(word in text for word in ("data-dependent", "DataDependent", "Could not guard", "dynamic control flow")):
        hint = (
            "\nThe Python code branches or loops on the values of a tensor, which has no fixed graph. "
            "Use torch.where or torch.cond, or move the decision out of the model."
        )
    elif "dynamic_shapes" in text or "Constraints violated" in text or "specialized" in text:
        broken = "".join(f"\n{entry}" for entry in text.splitlines() if entry.startswith(("  - ", "  * ")))
        hint = (
            f"{broken}\nCheck dynamic_shapes: a size that the model fixes (or divides by) cannot be declared dynamic "
            "like this."
        )
    return f"torch.export cannot trace {type(model).__name__}{where}: {first}{hint}"


def _place(model: nn.Module, failure: Exception) -> tuple[str, str]:
    """The innermost layer that an exception came through, and the last line of the user's own code."""
    names = {id(module): name or type(model).__name__ for name, module in model.named_modules()}
    layer, line = "", ""
    for frame, number in traceback.walk_tb(failure.__traceback__):
        file = frame.f_code.co_filename
        layer = names.get(id(frame.f_locals.get("self")), layer)
        if layer and not file.startswith((torch.__path__[0], "<")):
            line = f"{os.path.basename(file)}:{number}"
    return layer, line
