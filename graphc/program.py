"""What a backend makes of a whole graph: code, packed weights, and the plan that ties them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

# Workload -> parameter -> legal values.
Spaces: TypeAlias = "Mapping[str, Mapping[str, tuple[int, ...]]]"


@dataclass(frozen=True)
class Program:
    """A lowered graph, ready to be written as an artifact.

    code: an ELF shared object for the target, with no undefined symbols.
    weights: packed constants; each tensor starts at a multiple of 64 bytes.
    plan: JSON-able description: target, inputs, outputs, symbols, arena_bytes, state_bytes, init_steps and steps.
    spaces: what tuning may choose: the legal values of each parameter of each workload among the plan's steps.
    """

    code: bytes
    weights: bytes
    plan: dict[str, Any]
    spaces: Spaces = field(default_factory=dict)
