"""Targets: what the generated code may use. A Target is a plain value; CPUs are told by feature flags, never by name.

>>> Target.parse("arm64:cortex-a76").features
('neon', 'dotprod', 'fullfp16')
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

from graphc.errors import TargetError

# Feature names are LLVM's. Order matters: it is the order in which they are printed.
X86_FEATURES = (
    "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "avx", "avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt",
    "movbe", "avxvnni", "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512vnni", "avx512vbmi",
    "avx512bf16", "amx-tile", "amx-int8", "amx-bf16",
)  # fmt: skip
ARM_FEATURES = ("neon", "dotprod", "fullfp16", "i8mm", "bf16")

_V2 = ("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt")
_V3 = (*_V2, "avx", "avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
X86_LEVELS = {
    "v2": _V2,
    "v3": _V3,
    "v4": _V4,
    "vnni": (*_V4, "avx512vnni"),
    "amx": (*_V4, "avx512vnni", "avx512bf16", "amx-tile", "amx-int8", "amx-bf16"),
}
ARM_CPUS = {
    "cortex-a53": ("neon",),
    "cortex-a72": ("neon",),
    "cortex-a55": ("neon", "dotprod", "fullfp16"),
    "cortex-a76": ("neon", "dotprod", "fullfp16"),
    "neoverse-n1": ("neon", "dotprod", "fullfp16"),
    "neoverse-v1": ("neon", "dotprod", "fullfp16", "i8mm", "bf16"),
    "cortex-a710": ("neon", "dotprod", "fullfp16", "i8mm", "bf16"),
    "max": ("neon", "dotprod", "fullfp16", "i8mm", "bf16"),
}

# /proc/cpuinfo's spelling where it differs from LLVM's.
_CPUINFO = {
    "sse3": "pni", "sse4.1": "sse4_1", "sse4.2": "sse4_2", "bmi": "bmi1", "lzcnt": "abm", "avxvnni": "avx_vnni",
    "avx512vnni": "avx512_vnni", "avx512bf16": "avx512_bf16", "avx512vbmi": "avx512vbmi", "amx-tile": "amx_tile",
    "amx-int8": "amx_int8", "amx-bf16": "amx_bf16", "neon": "asimd", "dotprod": "asimddp", "fullfp16": "asimdhp",
}  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A chip to compile for: architecture, the instruction-set features that the code may use, and the weight formats
    that can be lowered for it (by name; None: all)."""

    name: str
    arch: str  # "x86-64" | "arm64"
    features: tuple[str, ...]
    formats: tuple[str, ...] | None = None

    @property
    def triple(self) -> str:
        return {"x86-64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[self.arch]

    def has(self, *features: str) -> bool:
        """Whether the code may use all of `features`."""
        return set(features) <= set(self.features)

    def takes(self, format: str) -> bool:
        """Whether weights in a format, given by its text, can be lowered."""
        return self.formats is None or format.partition("(")[0].strip() in self.formats

    @staticmethod
    def parse(spec: str | Target) -> Target:
        """Read a target: `host`, `x86-64[:v2|v3|v4|vnni|amx]`, `arm64[:cpu]`.

        `x86-64` alone is v3 (AVX2, every server and desktop since 2015), `arm64` alone is ARMv8.2 with dot products
        (every core since the Cortex-A76 and A55). Raises TargetError that lists what is known.
        """
        if isinstance(spec, Target):
            return spec
        base, _, level = spec.partition(":")
        if spec == "host":
            arch = machine_arch()
            if arch not in ("x86-64", "arm64"):
                raise TargetError(f"this machine is a {arch}; graphc generates code for x86-64 and arm64")
            return Target("host", arch, machine_features())
        if base == "x86-64" and (level or "v3") in X86_LEVELS:
            return Target(spec, "x86-64", X86_LEVELS[level or "v3"])
        if base == "arm64" and (level or "cortex-a76") in ARM_CPUS:
            return Target(spec, "arm64", ARM_CPUS[level or "cortex-a76"])
        known = "\n".join(f"  {name}" for name, _ in known_targets())
        raise TargetError(f"unknown target '{spec}'; known targets:\n{known}")

    def to_json(self) -> dict[str, Any]:
        known = {} if self.formats is None else {"formats": list(self.formats)}
        return {"name": self.name, "arch": self.arch, "features": list(self.features), **known}

    @staticmethod
    def from_json(data: dict[str, Any]) -> Target:
        formats = data.get("formats")
        return Target(data["name"], data["arch"], tuple(data["features"]), None if formats is None else tuple(formats))


def machine_arch() -> str:
    """The architecture of this machine in graphc's words."""
    machine = platform.machine()
    return {"x86_64": "x86-64", "AMD64": "x86-64", "aarch64": "arm64", "arm64": "arm64"}.get(machine, machine)


def machine_model() -> str:
    """What this machine's CPU calls itself; for people and for keys of measurements, never to choose code by."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            found = [line.partition(":") for line in lines if line.startswith(("model name", "CPU part"))]
        if found:
            return found[0][2].strip()
    return platform.processor() or platform.machine()


def machine_features() -> tuple[str, ...]:
    """Features of this machine's CPU that the operating system lets programs use, from its CPUID/HWCAP flags."""
    flags: set[str] = set()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            for line in lines:
                key, _, value = line.partition(":")
                if key.strip() in ("flags", "Features"):
                    flags = set(value.split())
                    break
    known = X86_FEATURES if machine_arch() == "x86-64" else ARM_FEATURES
    return tuple(feature for feature in known if _CPUINFO.get(feature, feature) in flags)


def known_targets() -> list[tuple[str, str]]:
    """All target names with a line of explanation, for `graphc targets`."""
    rows = [("host", "this machine, all features that its CPU reports"), ("x86-64", "AVX2 and FMA (level v3)")]
    rows += [(f"x86-64:{level}", " ".join(features[-4:])) for level, features in X86_LEVELS.items()]
    rows += [("arm64", "ARMv8.2 with dot products (cortex-a76)")]
    rows += [(f"arm64:{cpu}", " ".join(features)) for cpu, features in ARM_CPUS.items()]
    return rows
