"""Targets: names to feature flags, and back."""

from __future__ import annotations

import json
import platform

import pytest

from graphc.errors import TargetError
from graphc.target import ARM_CPUS, ARM_FEATURES, X86_FEATURES, X86_LEVELS, Target, known_targets, machine_arch


@pytest.mark.parametrize(
    ("spec", "arch", "has", "lacks"),
    [
        ("x86-64", "x86-64", ("avx2", "fma", "sse4.2"), ("avx512f",)),
        ("x86-64:v2", "x86-64", ("sse4.2",), ("avx", "fma")),
        ("x86-64:v4", "x86-64", ("avx2", "avx512f", "avx512vl"), ("avx512vnni",)),
        ("x86-64:vnni", "x86-64", ("avx512vnni", "avx512bw"), ("amx-int8",)),
        ("x86-64:amx", "x86-64", ("amx-int8", "amx-tile", "avx512vnni"), ()),
        ("arm64", "arm64", ("neon", "dotprod"), ("i8mm",)),
        ("arm64:cortex-a53", "arm64", ("neon",), ("dotprod",)),
        ("arm64:neoverse-v1", "arm64", ("i8mm", "bf16", "dotprod"), ()),
    ],
)
def test_features(spec, arch, has, lacks):
    target = Target.parse(spec)
    assert (target.name, target.arch) == (spec, arch)
    assert target.has(*has)
    assert not any(target.has(feature) for feature in lacks)
    assert target.has()


def test_every_known_target_is_read_and_explained():
    rows = known_targets()
    for name, line in rows:
        assert line
        target = Target.parse(name)
        assert set(target.features) <= set(X86_FEATURES if target.arch == "x86-64" else ARM_FEATURES)
        assert target.triple.endswith("-linux-gnu")
    names = [name for name, _ in rows]
    assert len(set(names)) == len(names)
    assert {f"x86-64:{level}" for level in X86_LEVELS} | {f"arm64:{cpu}" for cpu in ARM_CPUS} <= set(names)


@pytest.mark.parametrize(
    "spec", ["", "x86", "x86-64:v9", "arm64:m1000", "HOST", "host:v3", "arm64;", "cuda", "x86-64 "]
)
def test_unknown_targets(spec):
    with pytest.raises(TargetError, match=r"(?s)unknown target '.*'; known targets:.*x86-64:vnni.*arm64:cortex-a76"):
        Target.parse(spec)


def test_round_trip():
    for name, _ in known_targets():
        target = Target.parse(name)
        assert Target.from_json(json.loads(json.dumps(target.to_json()))) == target
        assert Target.parse(target) is target


def test_levels_grow():
    for lower, higher in (("v2", "v3"), ("v3", "v4"), ("v4", "vnni"), ("vnni", "amx")):
        assert set(X86_LEVELS[lower]) < set(X86_LEVELS[higher])


def test_host():
    target = Target.parse("host")
    assert target.name == "host"
    assert target.arch == machine_arch()
    assert target.has("sse4.2" if target.arch == "x86-64" else "neon")


@pytest.mark.parametrize(
    ("machine", "arch"), [("x86_64", "x86-64"), ("AMD64", "x86-64"), ("aarch64", "arm64"), ("arm64", "arm64")]
)
def test_machines(machine, arch, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert machine_arch() == arch


def test_a_machine_of_another_kind(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(TargetError, match="this machine is a riscv64; graphc generates code for x86-64 and arm64"):
        Target.parse("host")
    assert Target.parse("arm64").arch == "arm64"
