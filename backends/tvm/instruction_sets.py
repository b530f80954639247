"""What a target's vector unit offers to the templates: width, registers, and its LLVM description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from graphc.target import Target


@dataclass(frozen=True)
class InstructionSet:
    """The vector unit of a target. `bytes`: width of a vector register; `registers`: how many there are."""

    target: Target
    bytes: int
    registers: int

    @staticmethod
    def of(target: Target) -> InstructionSet:
        if target.arch == "arm64":
            return InstructionSet(target, 16, 32)
        if target.has("avx512f", "avx512bw", "avx512dq", "avx512vl"):
            return InstructionSet(target, 64, 32)
        return InstructionSet(target, 32 if target.has("avx2", "fma") else 16, 16)

    @property
    def fused_multiply_add(self) -> bool:
        """Whether a * b + c, rounded once, is one instruction."""
        return self.target.arch == "arm64" or self.target.has("fma")

    def lanes(self, dtype: str) -> int:
        """Elements of a vector register; booleans are computed beside 32-bit values."""
        return self.bytes // (4 if dtype == "bool" else np.dtype(dtype).itemsize)

    def llvm(self) -> dict[str, Any]:
        """TVM's target: feature flags over a neutral CPU, so that no scheduling model of one CPU leaks in."""
        cpu = "generic" if self.target.arch == "arm64" else "x86-64"
        return {
            "kind": "llvm",
            "mtriple": self.target.triple,
            "mcpu": cpu,
            "mattr": [f"+{feature}" for feature in self.target.features],
        }
