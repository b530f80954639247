"""Golden cases: a pass as text in, text out.

    fold_batchnorm                                  the pipeline, as a spec string
    weight v = uniform(0.1, 2)                      optional: the numbers of one weight (see `_numbers`); else normal
    inputs = uniform(-3, 3)                         optional: the numbers of all inputs
    tolerance = 0.02                                optional: error relative to the largest result; else the pass's own
    before:
    graph ...
    after:
    graph ...  |  unchanged                         unchanged: the pass must return the very graph it was given

Weights get numbers by their printed types, the same in each run; digests are zeros in the files.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.ao.quantization.fx._decomposed  # registers the operators of PT2E
from torch import Tensor

from graphc.graph import Graph
from graphc.pipeline import PassContext, Pipeline
from graphc.tensor_type import DTYPES, symbol
from graphc.text import digest, dump, parse
from graphc.verifier import verify

_WEIGHT = re.compile(r'weight "(?P<name>[^"]*)" #0{16} : (?P<dtype>\w+)\[(?P<sizes>[\d, ]*)\]')


@dataclass(frozen=True)
class Case:
    spec: str
    before: str
    after: str
    numbers: Mapping[str, str] = field(default_factory=dict)
    tolerance: float | None = None

    @staticmethod
    def read(text: str) -> Case:
        head, _, rest = text.partition("before:\n")
        before, _, after = rest.partition("after:\n")
        spec, *lines = head.splitlines()
        numbers = dict(
            line.removeprefix("weight ").split(" = ") for line in lines if line and not line.startswith("//")
        )
        tolerance = numbers.pop("tolerance", None)
        return Case(spec, before, after, numbers, float(tolerance) if tolerance else None)

    def graph(self) -> Graph:
        """The graph before, with its weights."""
        weights: dict[str, Tensor] = {}

        def fill(found: re.Match[str]) -> str:
            name = found["name"]
            shape = [int(size) for size in found["sizes"].split(",") if size.strip()]
            weights[name] = _numbers(self.numbers.get(name, ""), name, shape, DTYPES[found["dtype"]])
            return found[0].replace("0" * 16, digest(weights[name]))

        return parse(_WEIGHT.sub(fill, self.before), weights)

    def inputs(self, graph: Graph, seed: int) -> list[Tensor]:
        """Random inputs; a dynamic size is its minimum plus the seed."""
        sizes = {symbol(name): min(known.minimum + seed, known.maximum) for name, known in graph.symbols.items()}
        leaves = []
        for node in graph.placeholders:
            kind = node.meta["type"]
            shape = [size if isinstance(size, int) else int(size.subs(sizes)) for size in kind.shape]
            leaves.append(_numbers(self.numbers.get("inputs", ""), f"{node.name}.{seed}", shape, kind.dtype))
        return leaves

    def run(self, relative_error: Any, promised: Mapping[str, float]) -> tuple[str, str]:
        """`before` and what the pass makes of it, as printed; checks on the way all that holds for every pass."""
        graph = self.graph()
        verify(graph)
        printed = dump(graph)
        ctx = PassContext(calibration=[self.inputs(graph, seed) for seed in range(8)])
        pipeline = Pipeline(self.spec)
        result = pipeline.run(graph, ctx)
        assert dump(graph) == printed, "the pass changed its input"
        assert dump(parse(dump(result), result.weights)) == dump(result)
        again = pipeline.run(result, ctx)
        assert again is result or dump(again) == dump(result), f"a second run changes the graph:\n{dump(again)}"
        bound = max(promised[item.fidelity] for item in pipeline.passes) if self.tolerance is None else self.tolerance
        for seed in range(3):
            inputs = self.inputs(graph, seed)
            error = relative_error(graph.run_flat(inputs), result.run_flat(inputs))
            assert error <= bound, f"the results change by {error:.2g}, more than {bound:.2g}:\n{dump(result)}"
        return _plain(printed), "unchanged\n" if result is graph else _plain(dump(result))


def _plain(text: str) -> str:
    return re.sub("#[0-9a-f]{16}", "#" + "0" * 16, text)


def _numbers(rule: str, name: str, shape: list[int], dtype: torch.dtype) -> Tensor:
    """uniform(low, high) | normal(scale) | constant(value, ...) | integers(low, high): the same for the same name."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    kind, _, inside = rule.rstrip(")").partition("(")
    values = [float(item) for item in inside.split(",") if item.strip()]
    if kind == "constant":
        count = int(torch.Size(shape).numel())
        return (
            torch.tensor(values, dtype=torch.float64).repeat(count // len(values) + 1)[:count].to(dtype).reshape(shape)
        )
    if kind == "uniform":
        return (torch.rand(shape, generator=generator) * (values[1] - values[0]) + values[0]).to(dtype)
    if dtype.is_floating_point:
        return (torch.randn(shape, generator=generator) * (values[0] if values else 1.0)).to(dtype)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    low, high = values or {torch.int8: (-127, 128), torch.uint8: (0, 256)}.get(dtype, (0, 10))
    return torch.randint(int(low), int(high), shape, generator=generator).to(dtype)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors: threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def read_case() -> type[Case]:
    """read_case.read(text): see the module's docstring."""
    return Case
