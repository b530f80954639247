"""graphc: compile a neural network small and fast for a named chip.

>>> artifact = graphc.compile(model, target="arm64", example_inputs=(x,))

Names are imported on first use: `graphc.load` needs neither torch nor TVM, and `import graphc` is cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name -> the module that defines it.
_HOME = {
    "Artifact": "graphc.artifact",
    "Budget": "graphc.budget",
    "Graph": "graphc.graph",
    "GraphcError": "graphc.errors",
    "Pass": "graphc.pipeline",
    "PassContext": "graphc.pipeline",
    "Pipeline": "graphc.pipeline",
    "Report": "graphc.report",
    "Target": "graphc.target",
    "TensorType": "graphc.tensor_type",
    "compile": "graphc.compiler",
    "dump": "graphc.text",
    "explore": "graphc.exploration",
    "load": "graphc.artifact",
    "parse": "graphc.text",
    "trace": "graphc.frontends",
    "verify": "graphc.verifier",
}
__all__ = sorted(_HOME)

if TYPE_CHECKING:
    from graphc.artifact import Artifact as Artifact
    from graphc.artifact import load as load
    from graphc.budget import Budget as Budget
    from graphc.compiler import compile as compile
    from graphc.errors import GraphcError as GraphcError
    from graphc.exploration import explore as explore
    from graphc.frontends import trace as trace
    from graphc.graph import Graph as Graph
    from graphc.pipeline import Pass as Pass
    from graphc.pipeline import PassContext as PassContext
    from graphc.pipeline import Pipeline as Pipeline
    from graphc.report import Report as Report
    from graphc.target import Target as Target
    from graphc.tensor_type import TensorType as TensorType
    from graphc.text import dump as dump
    from graphc.text import parse as parse
    from graphc.verifier import verify as verify


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'graphc' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
