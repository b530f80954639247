"""The structure of a call: flatten and unflatten are inverses, and another structure is an error that says where."""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest

from graphc.errors import InputError
from graphc.structure import Structure


class Pair(NamedTuple):
    first: Any
    second: Any


def of(value: Any) -> Structure:
    """Strings are leaves, all else is constant."""
    return Structure.of(value, lambda item: isinstance(item, str))


VALUES = [
    ("leaf", ["leaf"]),
    ((), []),
    (("a",), ["a"]),
    (["a", ("b", None, 3, 2.5, True)], ["a", "b"]),
    ({"z": "a", "a": {"inner": ["b", "c"]}, 7: "d"}, ["a", "b", "c", "d"]),
]


@pytest.mark.parametrize(("value", "leaves"), VALUES)
def test_flatten_unflatten_and_json(value: Any, leaves: list[str]) -> None:
    structure = of(value)
    assert structure.flatten(value) == leaves and structure.size == len(leaves)
    assert structure.unflatten(leaves) == value
    assert Structure.from_json(json.loads(json.dumps(structure.to_json()))) == structure


def test_order_of_keys_is_the_structures() -> None:
    structure = of({"b": "1", "a": "2"})
    assert structure.flatten(OrderedDict(a="x", b="y")) == ["y", "x"]
    assert list(structure.unflatten(["y", "x"])) == ["b", "a"]


def test_named_tuples_are_tuples() -> None:
    assert of(Pair("a", "b")) == of(("a", "b"))
    assert of(("a", "b")).flatten(Pair("x", "y")) == ["x", "y"]


def test_text_is_as_in_python() -> None:
    structure = of((("a",), {"mask": ["b", None, 2]}))
    assert structure.text(["%x", "%m"]) == '((%x,), {"mask": [%m, None, 2]})'


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((), {"mask": "m", "flag": None}, "args must have 2 items, got 0"),
        (("x", "y"), {"mask": "m", "flag": None}, r"args\[1\] must have 2 items, got str"),
        (("x", ["y", "z"]), {"mask": "m"}, r"kwargs must have the keys \['mask', 'flag'\], got \['mask'\]"),
        (("x", ["y", "z"]), {"mask": "m", "flag": "m"}, r"kwargs\['flag'\] was None when the model was traced"),
        (("x", ["y", "z"]), {"mask": "m", "flag": np.zeros(2)}, r"kwargs\['flag'\] was None when the model was traced"),
    ],
)
def test_another_structure(args: tuple[Any, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        of((("a", ["b", "c"]), {"mask": "d", "flag": None})).flatten_call(args, kwargs)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ((("a", "b"), {}), 2),
        (((), {}), 0),
        ((("a",), {"mask": "b"}), None),
        ((("a", ("b",)), {}), None),
        ((("a", None), {}), None),
    ],
)
def test_plain_calls_are_leaves_one_after_the_other(call: Any, expected: int | None) -> None:
    assert of(call).num_plain == expected


def test_constants_keep_their_type() -> None:
    with pytest.raises(InputError, match="value was 1 when"):
        of(1).flatten(True)
