"""The perplexity program: its statistics, and its inequalities on a few stories."""

from __future__ import annotations

import json
import math

import pytest
import torch

from graphc.graph import Graph
from graphc.pipeline import PassContext
from graphc.structure import Structure
from graphc.tools import perplexity
from graphc.tools.weight_methods import CHECKS, SECTIONS, Layers, group
from graphc.tools.zoo import data


def row(losses: list[float], size: int = 1) -> perplexity.Row:
    return {"NLL of each text": losses, "bytes": size}


def test_a_difference_has_the_error_of_a_paired_ratio():
    counts = [10, 20, 30]
    mean, error = perplexity.compared(row([1.0, 2.0, 3.0]), row([0.9, 1.8, 2.7]), counts).values()
    assert mean == pytest.approx(0.01) and error == pytest.approx(0, abs=1e-9)  # the same in every token
    apart = perplexity.compared(row([1.0, 2.0, 6.0]), row([0.0, 2.0, 3.0]), counts)
    left = torch.tensor([1.0, 0.0, 3.0]) - 4 / 60 * torch.tensor([10.0, 20.0, 30.0])
    assert [*apart.values()] == pytest.approx([4 / 60, float(left.std()) * math.sqrt(3) / 60], abs=1e-5)


def test_an_inequality_fails_by_its_loss_or_by_its_bytes():
    better, worse, bytes_too = CHECKS[0]
    assert bytes_too
    for losses, size, holds in (([1.0, 2.0], 10, True), ([1.0, 4.0], 10, False), ([1.0, 2.0], 11, False)):
        rows = {better: row(losses, size), worse: row([1.5, 3.0], 10)}
        (found,) = perplexity.checks(rows, [5, 9]).values()
        assert found["holds"] == holds and found["no more bytes"] == (size <= 10)


def test_what_is_checked_is_measured():
    names = {method.name for section in SECTIONS.values() for method in section}
    assert sum(map(len, SECTIONS.values())) == len(names)
    assert {name for better, worse, _ in CHECKS for name in (better, worse)} <= names


def test_groups_divide_the_rows():
    assert [group(columns) for columns in (64, 172, 352, 12)] == [32, 43, 32, 12]


def test_bits_count_what_the_layers_store():
    graph = Graph("g", Structure.of(((), {})), Structure.of(0))
    graph.weights = {"codes": torch.zeros(96, dtype=torch.uint8), "scale": torch.zeros(4), "other": torch.zeros(50)}
    assert Layers({"a": ("one", (16, 8)), "b": ("one", (8, 8))}, 200).bits(graph) == 8 * (96 + 16) / 192


@pytest.fixture
def stories():
    try:
        data.path("lm_stories")
    except data.DataNotFoundError as missing:
        pytest.skip(str(missing))


def test_inequalities_on_a_few_stories(stories):
    language = perplexity.Stories("stories260k", limit=4)
    language.calibration = [[batch[0][:3]] for batch in language.calibration]
    ctx = PassContext(calibration=language.calibration)
    methods = {method.name: method for section in SECTIONS.values() for method in section}
    rows = {
        name: language.row(methods[name].run(language.graph, language.layers, ctx))
        for name in ("3 bits, nearest", "3 bits, GPTQ", "rank for 75%, plain", "rank for 75%, whitened")
    }
    assert rows["3 bits, GPTQ"]["bytes"] == rows["3 bits, nearest"]["bytes"]
    assert rows["3 bits, GPTQ"]["bits a weight"] == pytest.approx(3 + 16 / 32, abs=0.03)
    found = perplexity.checks(rows, language.tokens.tolist())
    assert found["3 bits, GPTQ < 3 bits, nearest"]["holds"]
    assert found["rank for 75%, whitened < rank for 75%, plain"]["holds"]
    # Each story is judged alone, and no story that calibrates is.
    assert sum(language.losses(language.graph)) == pytest.approx(sum(float(language_of(story)) for story in range(4)))


def language_of(place: int) -> torch.Tensor:
    """The loss of one judged story, by the model itself."""
    story = [each for number, each in enumerate(data.stories()) if number % perplexity.EVERY][place]
    encode, context = perplexity.LLAMAS["stories260k"]
    ids = torch.tensor(encode(story))
    assert len(ids) <= context
    with torch.no_grad():
        logits = perplexity.MODELS["stories260k"].build()(ids[None, :-1])[0].double()
    return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum")


def test_a_run_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    made = []

    class Two:
        layers, graph, calibration = None, "graph", [[torch.zeros(2, 3)]]
        tokens, sections = torch.tensor([3, 4]), ("one", "two")

        def __init__(self, name: str, limit: int | None) -> None:
            pass

        def row(self, graph: str) -> perplexity.Row:
            made.append(graph)
            return {"bytes": 8, "bits a weight": 2.0, "perplexity": 1.0, "NLL of each text": [1.0, 2.0]}

    class Way:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, graph: str, layers: None, ctx: PassContext) -> str:
            return self.name

    monkeypatch.setattr(perplexity, "TEXTS", {"stories260k": Two})
    monkeypatch.setattr(perplexity, "SECTIONS", {"one": [Way("a")], "two": [Way("b")]})
    output = tmp_path / "figures.json"
    known = ["stories260k", "--output", str(output)]
    perplexity.main([*known, "--sections", "one"])
    assert made == ["graph", "a"]
    perplexity.main(known)
    assert made == ["graph", "a", "b"]
    written = json.loads(output.read_text())["stories260k"]
    assert {key for key, value in written.items() if isinstance(value, dict)} == {"float", "a", "b"}
    assert written["a"]["NLL/token apart"] == 0 and written["judged tokens"] == 7
    perplexity.main([*known, "--sections", "one", "--seed", "1"])  # other options: all of it again
    assert made[3:] == ["graph", "a"]
    with pytest.raises(SystemExit):
        perplexity.main([*known, "--sections", "three"])
    assert "invalid choice: 'three'" in capsys.readouterr().err
