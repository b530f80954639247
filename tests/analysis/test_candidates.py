"""Which layers are one item, what a candidate holds, and that jobs travel."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn

import graphc
from graphc.analysis import SENSITIVITIES
from graphc.analysis.candidates import FLOAT, SEPARABLE, Candidates, candidates, compressing
from graphc.analysis.cost import Roofline, costs
from graphc.analysis.items import items
from graphc.errors import FormatError
from graphc.graph import Graph
from graphc.pipeline import PassContext, Pipeline
from graphc.target import Target
from graphc.text import dump


class Tied(nn.Module):
    """`first` runs twice, `second` and `third` share a weight, `table` is the embedding and the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(10, 8), nn.Embedding(3, 8)
        self.first, self.second, self.third = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.third.weight = self.second.weight
        self.last = nn.Linear(8, 10, bias=False)
        self.last.weight = self.table.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(self.first(self.table(x) + self.places(torch.arange(3)) + self.places.weight))
        return self.last(self.third(self.second(y)))  # type: ignore[no-any-return]


def test_layers_of_one_weight_or_path_are_one_item_and_weights_read_otherwise_none() -> None:
    graph = graphc.trace(Tied(), (torch.zeros(2, 3, dtype=torch.int64),))
    found = items(graph)
    assert [item.layers for item in found] == [("table", "last"), ("first",), ("second", "third")]
    assert [len(item.weights) for item in found] == [1, 1, 1]


def test_an_embedding_competes_in_every_format_and_its_rows_count_alike() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(40, 8), nn.Linear(8, 4)).eval()
    ctx = PassContext(calibration=[[torch.randint(0, 40, (2, 5))] for _ in range(3)])
    graph = graphc.trace(model, (ctx.calibration[0][0],))
    by_moments = "linear(bits=4,range=mse,rounding=gptq)"
    found = candidates(graph, ["linear", by_moments, "linear(bits=4,range=mse)", "vector(d=2,codewords=16)"], ctx)
    assert {text for name, text in found if name == "0"} == {FLOAT, *found.formats}
    plain = found["0", "linear(bits=4,range=mse)"].weights
    assert all(torch.equal(weight, plain[name]) for name, weight in found["0", by_moments].weights.items())
    losses = SENSITIVITIES["fisher"](graph, found, ctx)
    assert losses["0", by_moments] > losses["0", "linear"] > losses["0", FLOAT] == 0
    cost = costs(graph, found, Roofline(macs=1e9, bytes=1e9))
    assert cost["0", by_moments].macs == 0
    # Ten rows are looked up, and written in f32.
    assert cost["0", FLOAT].seconds == pytest.approx(10 * 8 * 4 * 2 / 1e9)
    assert cost["0", "linear"].seconds < cost["0", FLOAT].seconds


def test_layers_of_one_fused_group_are_one_item(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [item.layers for item in items(graph)] == [("0",), ("3",), ("6",)]

    def two_in_one(self: object, graph: Graph, ctx: PassContext) -> Graph:
        fused = graph.clone()
        for node in fused:
            node.meta["group"] = 7 if node.meta["path"] in ("0", "3") else None
        return fused

    monkeypatch.setattr("graphc.passes.fuse_operators.FuseOperators.run", two_in_one)
    assert [item.layers for item in items(graph)] == [("0", "3"), ("6",)]


def test_a_candidate_is_what_the_pass_stores(graph: Graph, found: Candidates, ctx: PassContext) -> None:
    compressed = Pipeline('compress{format="vector(d=2,codewords=16)",layers=[3],data=true}').run(graph, ctx)
    key = ("3", "vector(d=2,codewords=16)")
    before = sum(weight.nbytes for weight in graph.weights.values())
    after = sum(weight.nbytes for weight in compressed.weights.values())
    assert before - after == found["3", FLOAT].bytes - found[key].bytes
    x = torch.randn(4, 3, 8, 8)
    replaced = graph.clone()
    replaced.weights.update(found[key].weights)
    torch.testing.assert_close(replaced.run(x), compressed.run(x))


def test_layers_that_a_format_cannot_take_lack_it(found: Candidates) -> None:
    assert ("0", "sparse") not in found, "27 columns are no whole number of fours"
    assert ("3", "sparse") in found
    assert all((item.name, FLOAT) in found for item in found.groups)


def test_the_target_says_which_formats_compete(graph: Graph) -> None:
    integers = replace(Target.parse("host"), formats=("linear",))
    assert Target.from_json(integers.to_json()) == integers
    made = candidates(graph, ("linear(bits=4)", "sparse"), PassContext(integers))
    assert {text for _, text in made} == {FLOAT, "linear(bits=4)"}
    with pytest.raises(FormatError, match="takes none of the formats sparse"):
        candidates(graph, ("sparse",), PassContext(integers))


def test_threads_give_the_same_candidates(graph: Graph, ctx: PassContext, found: Candidates) -> None:
    with ThreadPoolExecutor(2) as executor:
        spread = candidates(graph, found.formats, replace(ctx, executor=executor))
    assert list(spread) == list(found)
    for key, candidate in found.items():
        assert candidate.bytes == spread[key].bytes
        for name, weight in candidate.weights.items():
            assert torch.equal(weight, spread[key].weights[name])


def test_graphs_can_be_pickled(graph: Graph) -> None:
    assert dump(pickle.loads(pickle.dumps(graph))) == dump(graph)


def test_costs_count_work_bytes_and_the_slower_of_both(graph: Graph, found: Candidates) -> None:
    made = costs(graph, found, Roofline(macs=1e3, bytes=1e12))
    assert made["0", FLOAT].macs == 4 * 8 * 8 * 8 * 27
    assert made["0", FLOAT].seconds == made["0", FLOAT].macs / 1e3
    slow = costs(graph, found, Roofline(macs=1e12, bytes=1e3))
    activations = 4 * (4 * 72 + 4 * 5)
    assert slow["6", "linear(bits=4)"].seconds == (found["6", "linear(bits=4)"].bytes + activations) / 1e3
    assert slow["6", "linear(bits=4)"].seconds < slow["6", FLOAT].seconds


def test_low_rank_linear_layers_multiply_less() -> None:
    graph = graphc.trace(nn.Sequential(nn.Linear(32, 64)), (torch.zeros(2, 32),))
    made = candidates(graph, ("low_rank(rank=4)",), PassContext())
    cost = costs(graph, made, Roofline.of(Target.parse("x86-64")))
    assert cost["0", "low_rank(rank=4)"].macs == 2 * 4 * (32 + 64)


def test_a_separable_convolution_competes_as_what_the_pass_makes_of_it(graph: Graph, ctx: PassContext) -> None:
    found = candidates(graph, (SEPARABLE, "linear"), ctx)
    assert [key for key in found if key[1] == SEPARABLE] == [("0", SEPARABLE), ("3", SEPARABLE)], "the last is linear"
    dense = graph.clone()
    for name in ("0", "3"):
        dense.weights.update(found[name, SEPARABLE].weights)
    passes = compressing(SEPARABLE, ["0", "3"])
    assert str(passes) == "separate_convolutions{error=inf,layers=[0,3]}"
    separated = Pipeline(str(passes)).run(graph, PassContext())
    x = ctx.calibration[0]
    torch.testing.assert_close(separated.run_flat(x), dense.run_flat(x), rtol=1e-4, atol=1e-5)
    stored = sum(separated.weights[f"{n}.{part}"].nbytes for n in found.item("0").weights + found.item("3").weights
                 for part in ("depthwise", "pointwise"))  # fmt: skip
    assert stored == found["0", SEPARABLE].bytes + found["3", SEPARABLE].bytes
    work = costs(graph, found, Roofline(1e9, 1e9))
    assert work["3", SEPARABLE].macs == work["3", FLOAT].macs // 9 + work["3", FLOAT].macs // 8


def test_candidates_are_encoded_by_the_data_where_there_is_any(graph: Graph, ctx: PassContext) -> None:
    text = "linear(bits=3,range=mse,rounding=gptq)"
    found = candidates(graph, (text,), ctx)
    assert found.data and len(found.changed) == 3
    by_pass = Pipeline([compressing(text, data=True)]).run(graph, ctx)
    dense = graph.clone()
    for key in found.changed:
        dense.weights.update(found[key].weights)
    torch.testing.assert_close(by_pass.run_flat(ctx.calibration[0]), dense.run_flat(ctx.calibration[0]))
    without = candidates(graph, (text,), PassContext())
    assert not without.data and not without.changed, "GPTQ needs data"
