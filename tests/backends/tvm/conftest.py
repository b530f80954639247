"""Run graphs through the TVM backend and through torch, many operators in one compilation.

A test module's CASES name operators and arguments, {"name": (operator, *arguments, {keywords})}; (operator, i) picks
the i-th result. Tensors become inputs of the graph; an nn.Parameter becomes a stored tensor.
"""

from __future__ import annotations

import ctypes
import operator
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graphc.artifact import Artifact
from graphc.backends.tvm import lower
from graphc.errors import TargetError
from graphc.graph import Graph
from graphc.runtime import emulator, loader
from graphc.structure import Structure
from graphc.target import Target, machine_arch, machine_features
from graphc.tensor_type import TensorType


def tensors(argument: Any) -> Iterator[Tensor]:
    """The tensors among nested arguments that are no parameters."""
    if isinstance(argument, Tensor):
        if not isinstance(argument, nn.Parameter):
            yield argument
    elif isinstance(argument, dict | list | tuple):
        for item in argument.values() if isinstance(argument, dict) else argument:
            yield from tensors(item)


def build(cases: dict[str, tuple[Any, ...]]) -> tuple[Graph, list[Tensor]]:
    """One graph with a result for each case, and its inputs."""
    inputs = list(tensors([item[1:] for item in cases.values()]))
    graph = Graph("cases", Structure.of((tuple(inputs), {})), Structure.of(tuple(cases)))
    waiting = [graph.add_input(f"x{i}", TensorType.of(tensor)) for i, tensor in enumerate(inputs)]

    def enter(argument: Any) -> Any:
        if isinstance(argument, nn.Parameter):
            return graph.add_weight("w", argument.detach())
        if isinstance(argument, Tensor):
            return waiting.pop(0)
        if isinstance(argument, list | tuple):
            return type(argument)(enter(item) for item in argument)
        if isinstance(argument, dict):
            return {key: enter(value) for key, value in argument.items()}
        return argument

    results = []
    for target, *arguments in cases.values():
        keywords = enter(arguments.pop()) if arguments and isinstance(arguments[-1], dict) else {}
        target, *item = target if isinstance(target, tuple) else (target,)
        node = graph.call(target, *enter(arguments), **keywords)
        results.append(graph.call(operator.getitem, node, *item) if item else node)
    graph.set_output(results)
    return graph, inputs


def compile_graph(graph: Graph, target: str = "host", threads: int = 2) -> Artifact:
    """The graph lowered as it is, by no pass."""
    manifest = {"inputs": graph.inputs.to_json(), "outputs": graph.outputs.to_json()}
    artifact = Artifact.build(lower(graph, Target.parse(target)), "", {}, manifest)
    artifact.threads = threads
    return artifact


def comparable(expected: Tensor) -> Tensor:
    """torch's result in the type in which an artifact returns it."""
    return expected.float() if expected.dtype == torch.bfloat16 else expected


def assert_agree(graph: Graph, got: Sequence[Any], inputs: Sequence[Tensor], rtol: float, atol: float) -> None:
    """Integers equal, floats close, dtypes and NaN the same as in torch."""
    for value, expected in zip(got, map(comparable, graph.run_flat(list(inputs))), strict=True):
        loose = expected.is_floating_point()
        torch.testing.assert_close(
            torch.as_tensor(value), expected, rtol=rtol * loose, atol=atol * loose, equal_nan=True, check_stride=False
        )


class Amx:
    """AMX in software (amx_emulator.c), in this process, from the first use on."""

    FEATURES = frozenset({"amx-tile", "amx-int8", "amx-bf16"})
    INSTRUCTIONS = (
        "ldtilecfg", "sttilecfg", "tilerelease", "tilezero", "tileloadd", "tilestored",
        "tdpbssd", "tdpbsud", "tdpbusd", "tdpbuud", "tdpbf16ps",
    )  # fmt: skip

    @cached_property
    def library(self) -> ctypes.CDLL:
        source = Path(__file__).with_name("amx_emulator.c")
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "amx.so"
            flags = ["-std=gnu11", "-O3", "-march=native", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
            command = [sys.executable, "-m", "ziglang", "cc", *flags, str(source), "-o", str(output)]
            subprocess.run(command, check=True)
            return ctypes.CDLL(str(output))

    @property
    def started(self) -> bool:
        return loader.EMULATED_FEATURES >= self.FEATURES

    def start(self) -> None:
        if not self.started:
            assert self.library.amx_start() == 0
            loader.EMULATED_FEATURES.update(self.FEATURES)

    def counts(self) -> dict[str, int]:
        """How often each instruction ran since the last call."""
        counts = (ctypes.c_uint64 * len(self.INSTRUCTIONS))()
        self.library.amx_counts(counts)
        return {name: count for name, count in zip(self.INSTRUCTIONS, counts, strict=True) if count}

    def misuse(self) -> str:
        """What the CPU would have refused since the last call."""
        message = ctypes.create_string_buffer(200)
        self.library.amx_misuse(message)
        return message.value.decode()


AMX = Amx()


@pytest.fixture(autouse=True)
def no_misuse_of_amx() -> Iterator[None]:
    yield
    assert not AMX.started or AMX.misuse() == ""


@pytest.fixture
def amx() -> Amx:
    """The emulator of AMX, started; skips on a CPU that has AMX."""
    if set(machine_features()) >= AMX.FEATURES:
        pytest.skip("this CPU lacks nothing: its AMX is used, not the emulator")
    require("x86-64:amx")
    return AMX


def require(target: str) -> None:
    """Skip where this machine cannot run code for the target. AMX is emulated where only AMX is missing."""
    wanted = Target.parse(target)
    if wanted.arch == machine_arch():
        missing = set(wanted.features) - set(machine_features())
        if missing and missing <= Amx.FEATURES:
            AMX.start()
        elif missing:
            pytest.skip(f"this CPU lacks {' '.join(sorted(missing))}")
        return
    try:
        emulator.find(wanted.arch)
    except TargetError as error:
        pytest.skip(str(error))


class Suite:
    """The cases of one module: compiled together, once a target, and compared one by one."""

    def __init__(self, cases: dict[str, tuple[Any, ...]], rtol: float, atol: float) -> None:
        self._cases, self._rtol, self._atol = cases, rtol, atol
        self.results = cache(self._execute)

    def _execute(self, target: str) -> dict[str, tuple[Tensor, Tensor]]:
        graph, inputs = build(self._cases)
        got = map(torch.as_tensor, graph.outputs.flatten(compile_graph(graph, target).run(*inputs)))
        expected = map(comparable, graph.run_flat(inputs))
        return dict(zip(self._cases, zip(got, expected, strict=True), strict=True))

    def check(self, name: str, target: str = "host") -> None:
        require(target)
        got, expected = self.results(target)[name]
        loose = expected.is_floating_point()
        torch.testing.assert_close(
            got, expected, rtol=self._rtol * loose, atol=self._atol * loose, equal_nan=True, check_stride=False
        )


@pytest.fixture(scope="module")
def suite(request: pytest.FixtureRequest) -> Suite:
    """The module's CASES; its RTOL and ATOL hold floats to what torch gives."""
    module = request.module
    return Suite(module.CASES, getattr(module, "RTOL", 1e-5), getattr(module, "ATOL", 1e-5))


@pytest.fixture(scope="session")
def compiled() -> Callable[..., Artifact]:
    """compiled(graph, target, threads): see `compile_graph`."""
    return compile_graph


@pytest.fixture(scope="session")
def check() -> Callable[..., None]:
    """check(graph, inputs, target="host"): the graph, compiled for the target, computes what torch does."""

    def compare(
        graph: Graph, *batches: Sequence[Tensor], target: str = "host", rtol: float = 1e-5, atol: float = 1e-5
    ) -> None:
        require(target)
        artifact = compile_graph(graph, target)
        for inputs in batches:
            assert_agree(graph, graph.outputs.flatten(artifact.run(*inputs)), inputs, rtol, atol)

    return compare
