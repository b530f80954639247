"""Programs that state figures: their file goes on where a run was stopped, and says the same as the table."""

import json

import pytest

from graphc.tools import statement
from graphc.tools.statement import Known, table, text


def test_what_is_in_the_file_is_not_measured_again(tmp_path, capsys):
    path, measured = tmp_path / "folder" / "figures.json", []

    def speed(options, known):
        for number in range(options.limit):
            known.once(f"row {number}", lambda number=number: measured.append(number) or {"value": number / 8})
            if len(measured) == 2 and number == 1 and options.limit == 3 and len(known) == 2 and not stopped:
                stopped.append(True)
                raise KeyboardInterrupt

    stopped: list[bool] = []
    arguments = ["speed", "--limit", "3", "--output", str(path)]
    with pytest.raises(KeyboardInterrupt):
        statement.main("program", "What it is.", {"speed": speed}, arguments)
    assert json.loads(path.read_text()) == {"speed, limit 3": {"row 0": {"value": 0.0}, "row 1": {"value": 0.125}}}
    assert statement.main("program", "What it is.", {"speed": speed}, arguments) == 0
    assert measured == [0, 1, 2]
    assert "0.125" in capsys.readouterr().out
    assert [file.name for file in path.parent.iterdir()] == ["figures.json"]


def test_other_names_in_the_file_stay(tmp_path):
    path = tmp_path / "figures.json"
    Known(path, "one")["a"] = 1
    Known(path, "two")["b"] = 2
    assert json.loads(path.read_text()) == {"one": {"a": 1}, "two": {"b": 2}}


def test_figures_of_other_options_are_other_figures(tmp_path):
    path = tmp_path / "figures.json"

    def add(parser):
        parser.add_argument("--batch", type=int, default=8)
        parser.add_argument("--steps", type=int, nargs="+", default=[1])

    def speed(options, known):
        known.once(f"row{statement.apart(options, 'steps')}", lambda: options.batch)

    for given in ((), ("--batch", "8"), ("--batch", "4"), ("--steps", "2", "3"), ("--limit", "5", "--batch", "2")):
        arguments = ["--output", str(path), *given]
        assert statement.main("program", "What it is.", {"speed": speed}, arguments, add, shared=("batch",)) == 0
    assert json.loads(path.read_text()) == {
        "speed": {"row": 8, "row, steps 2+3": 8}, "speed, batch 4": {"row": 4}, "speed, limit 5, batch 2": {"row": 2},
    }  # fmt: skip


def test_a_table_has_a_column_for_each_value_and_no_records():
    figures = {"plain": 1234, "both": {"x": 1.5, "y": "z"}, "long": "x" * 100, "both | record": "r", "list": [1]}
    made = table("title", figures)
    assert [column.header for column in made.columns] == ["figure", "measured", "x", "y"]
    assert [list(column.cells) for column in made.columns] == [
        ["plain", "both", "long", "list"], ["1,234", "", "", ""], ["", "1.5", "", ""], ["", "z", "", ""],
    ]  # fmt: skip


def test_a_table_of_very_many_values_is_turned():
    made = table("title", {f"seed {seed}": {f"value {n}": n + seed for n in range(20)} for seed in range(2)})
    assert [column.header for column in made.columns] == ["figure", "seed 0", "seed 1"]
    assert list(made.columns[2].cells) == [str(n + 1) for n in range(20)]


def test_texts():
    assert [text(value) for value in (None, True, 12345, 0.000123456, "a")] == ["", "True", "12,345", "0.0001235", "a"]


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit):
        statement.main("program", "What it is.", {"speed": lambda options, known: None}, ["sped"])
    assert "unknown figure sped; known: speed" in capsys.readouterr().err
