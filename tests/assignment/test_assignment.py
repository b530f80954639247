"""The integer program against all assignments there are, and the gates beside it."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

import pytest
import torch
from torch import nn

import graphc
from graphc.analysis import SENSITIVITIES
from graphc.analysis.candidates import FLOAT, candidates
from graphc.analysis.divergence import divergence
from graphc.analysis.items import Item
from graphc.assignment import Assignment, Choice, Option, choices
from graphc.assignment.gates import _slopes, gates
from graphc.assignment.integer_program import integer_program
from graphc.errors import BudgetError, CalibrationError
from graphc.graph import Graph
from graphc.passes.compress import Compress
from graphc.pipeline import CLEAN, PassContext, Pipeline


def problem(seed: int, items: int = 5, formats: int = 4) -> list[Choice]:
    generator = random.Random(seed)
    made = []
    for number in range(items):
        options = tuple(
            Option(f"f{place}", generator.randrange(1, 10**6), 10 ** generator.uniform(-6, 1), generator.uniform(1, 9))
            for place in range(formats)
        )
        made.append(Choice(Item((f"layer{number}",), (f"w{number}",)), options))
    return made


def every(made: Sequence[Choice]) -> list[Assignment]:
    return [
        Assignment(tuple(choice.item for choice in made), options)
        for options in itertools.product(*(choice.options for choice in made))
    ]


@pytest.mark.parametrize("seed", range(8))
def test_nothing_within_the_bounds_is_better(seed: int) -> None:
    made = problem(seed)
    size, latency = sum(choice.options[0].bytes for choice in made), 25.0
    within = [item for item in every(made) if item.bytes <= size and item.nanoseconds <= latency]
    if not within:
        with pytest.raises(BudgetError, match="least that there is"):
            integer_program(made, size=size, latency=latency)
        return
    found = integer_program(made, size=size, latency=latency)
    assert found.bytes <= size and found.nanoseconds <= latency
    assert found.loss == pytest.approx(min(item.loss for item in within), rel=1e-6)
    assert integer_program(made, size=size, latency=latency) == found


@pytest.mark.parametrize("seed", range(4))
def test_the_least_bytes_within_a_loss(seed: int) -> None:
    made = problem(seed)
    bound = sum(sorted(option.loss for option in choice.options)[1] for choice in made)
    found = integer_program(made, loss=bound, minimize="bytes")
    assert found.loss <= bound
    assert found.bytes == min(item.bytes for item in every(made) if item.loss <= bound)


@pytest.mark.parametrize("kernel", [1e4, 1e5, 1e6])
@pytest.mark.parametrize("seed", range(4))
def test_a_kernel_is_counted_once_for_each_kind_and_format(seed: int, kernel: float) -> None:
    made = [
        Choice(Item(choice.item.layers, choice.item.weights, f"kind {place % 2}"), choice.options)
        for place, choice in enumerate(problem(seed))
    ]
    assignments = every(made)
    assert {item.kernels for item in assignments} == {2, 3, 4, 5}
    smallest = integer_program(made, minimize="bytes", kernel=kernel).size(kernel)
    assert smallest == pytest.approx(min(item.size(kernel) for item in assignments))
    size = 1.3 * smallest
    found = integer_program(made, size=size, kernel=kernel)
    assert found.size(kernel) <= size
    within = [item for item in assignments if item.size(kernel) <= size]
    assert found.loss == pytest.approx(min(item.loss for item in within), rel=1e-6)
    with pytest.raises(BudgetError, match=rf"the least that there is {smallest:,.0f}"):
        integer_program(made, size=0.9 * smallest, kernel=kernel)


def test_options_of_infinite_loss_are_never_chosen() -> None:
    item = Item(("a",), ("w",))
    made = [Choice(item, (Option("broken", 1, math.inf), Option("good", 9, 1.0)))]
    assert integer_program(made).formats == {"a": "good"}
    with pytest.raises(BudgetError, match="no format of layer 'a' has a finite loss"):
        integer_program([Choice(item, (Option("broken", 1, math.inf),))])


def test_a_bound_below_everything_shows_the_least() -> None:
    with pytest.raises(BudgetError, match=r"bytes: at most 5, the least that there is 12"):
        integer_program([Choice(Item(("a",), ("w",)), (Option("f", 12, 0.0),))], size=5)


def test_an_assignment_prints_as_the_passes_that_carry_it_out() -> None:
    items = (Item(("a", "b"), ("w",)), Item(("c[0]",), ("v",)), Item(("d",), ("u",)))
    options = (Option("linear(bits=4,group=32)", 1, 0), Option("vector(d=8)", 1, 0), Option(FLOAT, 4, 0))
    text = str(Assignment(items, options))
    assert text.startswith('compress{format="linear(bits=4,group=32)",layers=[a,b]},compress{format="vector(d=8)"')
    passes = Pipeline(text).passes
    assert passes == Assignment(items, options).passes
    assert isinstance(passes[1], Compress) and passes[1].layers == ("c[[]0]",), "a pattern that matches it alone"


@pytest.fixture(scope="module")
def trained() -> tuple[Graph, PassContext]:
    """Two layers, of which the output hardly depends on the first's second half, and the passes' context."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    graph = Pipeline(CLEAN).run(graphc.trace(model.eval(), (torch.randn(32, 16),)))
    return graph, PassContext(calibration=[[torch.randn(32, 16)] for _ in range(4)])


FORMATS = ("linear", "linear(bits=4)", "linear(bits=2)", "vector(d=2,codewords=16)")


@pytest.mark.parametrize("room", [1.0, 1.5, 2.0, 4.0, 99.0])
def test_gates_find_what_the_integer_program_finds(trained: tuple[Graph, PassContext], room: float) -> None:
    """In two layers a single choice that is clearly worse would show, in a tight budget and with room to spare."""
    graph, ctx = trained
    found = candidates(graph, FORMATS, ctx)
    made = choices(found, SENSITIVITIES["kl"](graph, found, ctx))
    size = int(room * sum(found[item.name, "linear(bits=4)"].bytes for item in found.groups))
    chosen = gates(graph, found, made, ctx, size, steps=150)
    best, smallest = integer_program(made, size=size), integer_program(made, minimize="bytes")
    assert chosen.bytes <= size
    assert best.loss <= chosen.loss <= 1.5 * best.loss + 1e-3 * smallest.loss


def test_a_gate_from_the_float_weights_sees_the_divergence(trained: tuple[Graph, PassContext]) -> None:
    """There the slope is nought: what other paths would add is the curvature's, to second order."""
    graph, ctx = trained
    found = candidates(graph, ["linear(bits=4)"], ctx)
    made = choices(found, dict.fromkeys(found, 0.0))
    drawn = [next(i for i, option in enumerate(choice.options) if option.format == FLOAT) for choice in made]
    batch, generator = ctx.calibration[0], torch.Generator().manual_seed(0)
    expected, draws = graph.run_flat(batch), 300
    added = torch.zeros(len(made))
    for _ in range(draws):
        lost, slopes = _slopes(graph, found, made, drawn, batch, expected, generator)
        assert lost == pytest.approx(0, abs=1e-6)
        assert all(slope[place] == 0 for slope, place in zip(slopes, drawn, strict=True))
        added += torch.tensor([float(slope[1 - place]) for slope, place in zip(slopes, drawn, strict=True)]) / draws
    for choice, mean in zip(made, added.tolist(), strict=True):
        changed = graph.clone()
        changed.weights.update(found[choice.item.name, "linear(bits=4)"].weights)
        assert mean == pytest.approx(float(divergence(expected, changed.run_flat(batch))), rel=0.3)


def test_gates_are_the_same_for_a_seed(trained: tuple[Graph, PassContext]) -> None:
    graph, ctx = trained
    found = candidates(graph, FORMATS, ctx)
    made = choices(found, dict.fromkeys(found, 0.0))
    assert gates(graph, found, made, ctx, 400, steps=20) == gates(graph, found, made, ctx, 400, steps=20)


def test_gates_need_data_and_something_that_fits(trained: tuple[Graph, PassContext]) -> None:
    graph, ctx = trained
    found = candidates(graph, FORMATS, ctx)
    made = choices(found, dict.fromkeys(found, 0.0))
    with pytest.raises(CalibrationError, match="calibration data"):
        gates(graph, found, made, PassContext(), 10**6)
    with pytest.raises(BudgetError, match="least that there is"):
        gates(graph, found, made, ctx, 1)


def test_kinds_mix_in_one_optimum(trained: tuple[Graph, PassContext]) -> None:
    graph, ctx = trained
    found = candidates(graph, ("linear(bits=2)", "sparse"), ctx)
    losses = dict.fromkeys(found, 5.0) | {("0", "sparse"): 0.1, ("2", "linear(bits=2)"): 0.1}
    assert integer_program(choices(found, losses)).formats == {"0": "sparse", "2": "linear(bits=2)"}


def test_formats_without_a_measured_latency_are_left_out(trained: tuple[Graph, PassContext]) -> None:
    graph, ctx = trained
    found = candidates(graph, FORMATS, ctx)
    times = {("0", FLOAT): 10.0, ("0", "linear"): 4.0, ("2", FLOAT): 3.0}
    made = choices(found, dict.fromkeys(found, 0.0) | {("0", "linear"): 1.0}, times)
    assert [len(choice.options) for choice in made] == [2, 1]
    assert integer_program(made).formats == {"0": FLOAT, "2": FLOAT}
    assert integer_program(made, latency=8.0).formats == {"0": "linear", "2": FLOAT}
