"""dump and parse are inverses; what is no graph is a ParseError with its line and a caret, and nothing else."""

from __future__ import annotations

import math
import operator
import random
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import graphc
from graphc.errors import GraphcError, ParseError, VerificationError
from graphc.graph import Graph
from graphc.pipeline import PRESETS, PassContext, Pipeline
from graphc.sizes import parse_size
from graphc.structure import Structure
from graphc.tensor_type import DTYPES, SymbolRange, TensorType, symbol
from graphc.text import digest, dump, parse, read, save
from graphc.verifier import verify

aten = torch.ops.aten
CALL = Structure.of(((0,), {}))

EXAMPLE = """\
graph example((%x,), {}) {
  symbol batch in [1, 8]
  %w = weight "w" #DIGEST : f32[4]
  %x = input : f32[batch, 4]
  %s = aten.max.dim(%x, 1) : (f32[batch], i64[batch])
  %m = getitem(%s, 0) : f32[batch]
  %y = aten.mul.Tensor(%x, %w) : f32[batch, 4] @"layer.0" group=0
  %z = aten.clamp.default(%y, -1.5, inf) : f32[batch, 4] @"layer.0" group=0
  return {"z": %z, "rest": [%m, None, (2.5, "text")]}
}
"""
WEIGHTS = {"w": torch.arange(4.0)}
EXAMPLE = EXAMPLE.replace("DIGEST", digest(WEIGHTS["w"]))


def chain(length: int = 0, name: str = "g") -> Graph:
    graph = Graph(name, CALL, Structure.of(0))
    node = graph.add_input("x", TensorType((2, 3), torch.float32))
    for _ in range(length):
        node = graph.call(aten.neg.default, node)
    graph.set_output([node])
    return graph


# -- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["", *PRESETS.values()], ids=["traced", *PRESETS])
def test_networks_round_trip(spec, traced):
    graph = Pipeline(spec).run(traced.graph, PassContext(calibration=traced.calibration))
    text = dump(graph)
    again = parse(text, graph.weights)
    verify(again)
    assert dump(again) == text
    assert (again.inputs, again.outputs, again.symbols) == (graph.inputs, graph.outputs, graph.symbols)
    for old, new in zip(graph.run_flat(list(traced.inputs)), again.run_flat(list(traced.inputs)), strict=True):
        assert torch.equal(old, new)


def test_example():
    graph = parse(EXAMPLE, WEIGHTS)
    verify(graph)
    assert dump(graph) == EXAMPLE
    result = graph.run(torch.ones(3, 4))
    assert result["z"].tolist() == [[0, 1, 2, 3]] * 3
    assert result["rest"][1:] == [None, (2.5, "text")]


def test_comments_and_blank_lines_are_skipped():
    lines = EXAMPLE.splitlines()
    text = "\n\n".join(["// before", *lines[:3], "   // between", *lines[3:], "// after", ""])
    assert dump(parse(text, WEIGHTS)) == EXAMPLE


names = st.text(min_size=1, max_size=20)
numbers = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=True),
    st.sampled_from([math.inf, -math.inf, math.nan, -0.0, 1e-45, 1e308, 5e-324]),
)
sizes = st.recursive(
    st.one_of(st.integers(0, 9), st.sampled_from(["a", "b"]).map(symbol)),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda two: parse_size(f"({two[0]}) + {two[1]}")),
        st.tuples(inner, inner).map(lambda two: parse_size(f"({two[0]})*({two[1]})")),
        st.tuples(inner, st.integers(2, 5)).map(lambda two: parse_size(f"({two[0]})//{two[1]}")),
        st.tuples(inner, st.integers(2, 5)).map(lambda two: parse_size(f"Mod({two[0]}, {two[1]})")),
        st.tuples(inner, inner).map(lambda two: parse_size(f"Max({two[0]}, {two[1]})")),
    ),
    max_leaves=3,
)
constants = st.one_of(
    numbers,
    st.booleans(),
    st.none(),
    names,
    st.sampled_from([*DTYPES.values(), torch.strided, torch.device("cpu"), torch.channels_last, torch.preserve_format]),
    sizes.filter(lambda size: not isinstance(size, int)),
)
arguments = st.recursive(constants, lambda inner: st.lists(inner, max_size=4), max_leaves=8)
types = st.builds(TensorType, st.lists(sizes, max_size=3).map(tuple), st.sampled_from(list(DTYPES.values())))


def same(one, other) -> bool:
    """Equal in value and in type, NaN and negative nought included."""
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return isinstance(other, float) and repr(one) == repr(other)
    return type(one) is type(other) and one == other


@settings(max_examples=100, deadline=None)
@given(
    st.lists(arguments, max_size=4),
    st.dictionaries(st.sampled_from(["dim", "dtype", "alpha", "f32", "None_", "inf_"]), arguments, max_size=3),
    types | st.lists(types, min_size=1, max_size=3).map(tuple),
    names,
    names,
)
def test_any_argument_path_and_type_round_trips(args, kwargs, kind, path, name):
    kwargs.pop("f32", None)
    graph = Graph(name, CALL, Structure.of(0), symbols={"a": SymbolRange(1, 5), "b": SymbolRange(2, 7)})
    x = graph.add_input("x", TensorType((2,), torch.float32))
    node = graph.fx.create_node("call_function", aten.add.Tensor, (x, [x, *args], *args), kwargs, name="y")
    node.meta.update(type=kind, path=path, group=3)
    item = graph.fx.create_node("call_function", operator.getitem, (node, 0), name="item")
    item.meta.update(type=kind, path="", group=None)
    graph.set_output([item])
    text = dump(graph)
    again = parse(text, {})
    assert dump(again) == text
    assert again.name == name
    found = {item.name: item for item in again}["y"]
    assert same(args, list(found.args[2:]))
    assert same(args, list(found.args[1][1:]))
    assert set(kwargs) == set(found.kwargs)
    assert all(same(value, found.kwargs[key]) for key, value in kwargs.items())
    assert found.meta == {"type": kind, "path": path, "group": 3}


plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), names)
leaf = object()
structures = st.recursive(
    st.one_of(st.just(leaf), plain),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(names | st.integers(), inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(structures, structures)
def test_any_call_structure_round_trips(inputs, outputs):
    inputs, outputs = (Structure.of(value, lambda item: item is leaf) for value in ((inputs, {}), outputs))
    graph = Graph("g", inputs, outputs)
    for place in range(inputs.size):
        graph.add_input(f"x{place}", TensorType((2,), torch.float32))
    result = graph.call(aten.full.default, [2], 1.0, name="y")
    graph.set_output([result] * outputs.size)
    again = parse(dump(graph), {})
    assert dump(again) == dump(graph)
    assert (again.inputs, again.outputs) == (inputs, outputs)


@pytest.mark.parametrize(
    "name", ["weight", "a.b.c", 'with "quotes"', "back\\slash", "new\nline", "umlaut ü", "", "%x : f32[2]"]
)
def test_any_weight_name_round_trips(name, tmp_path):
    graph = Graph("g", CALL, Structure.of((0, 0)))
    x = graph.add_input("x", TensorType((2,), torch.float32))
    weight = graph.add_weight(name, torch.ones(2))
    graph.set_output([graph.call(aten.add.Tensor, x, weight), weight])
    assert dump(parse(dump(graph), graph.weights)) == dump(graph)
    save(graph, tmp_path / "graph.txt")
    assert dump(read(tmp_path / "graph.txt")) == dump(graph)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_any_weight_type_is_kept_in_files(dtype, shape, tmp_path):
    tensor = torch.randint(0, 2, shape).to(dtype)
    graph = Graph("g", Structure.of(((), {})), Structure.of(0))
    graph.set_output([graph.add_weight("w", tensor)])
    save(graph, tmp_path / "graph.txt")
    again = read(tmp_path / "graph.txt")
    assert torch.equal(again.weights["w"], tensor)
    assert again.weights["w"].dtype == dtype


def test_files_hold_equal_tensors_once_and_nothing_half_written(tmp_path):
    for name in ("one", "two"):
        graph = Graph(name, Structure.of(((), {})), Structure.of((0, 0)))
        graph.set_output([graph.add_weight("a", torch.ones(3)), graph.add_weight("b", torch.ones(3))])
        save(graph, tmp_path / f"{name}.txt")
    assert len(list((tmp_path / "weights").iterdir())) == 1
    assert not list(tmp_path.rglob("*.part"))


def test_digest_tells_dtype_shape_and_contents_apart():
    same_bytes = [
        torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32), torch.zeros(2, dtype=torch.float64),
        torch.zeros(16, dtype=torch.bool), torch.tensor([0.0, 0, 0, -0.0]), torch.zeros(4, 1), torch.zeros(()),
    ]  # fmt: skip
    assert len({digest(tensor) for tensor in same_bytes}) == len(same_bytes)
    strided = torch.arange(6.0).reshape(2, 3).t()
    assert digest(strided) == digest(strided.contiguous())


# -- texts that are no graph ---------------------------------------------------------------------

MALFORMED = [
    ("graph example", "grph example", "expected 'graph NAME(inputs) {'", "grph"),
    ("(%x,), {}", "(%x, %v), {}", "%v is used before it is defined", "%v"),
    ("(%x,), {}", "(%x,), {}) junk(", "did not expect", "junk"),
    ("(%x,), {}", "(%x, %m), {}", "the inputs must be those of the 'input' lines", "graph"),
    ("[1, 8]", "[1, eight]", "expected 'symbol NAME in [MINIMUM, MAXIMUM]'", "symbol"),
    ("f32[4]", "f33[4]", "'f33[4]' is no type", "f33"),
    ("f32[4]", "f32[4", "is no type", "f32[4"),
    ("f32[batch, 4] @", "f32[batch.size, 4] @", "'batch.size' is no size", "f32[batch.size"),
    ("f32[batch, 4] @", "f32[f(batch), 4] @", "'f(batch)' is no size", "f32[f("),
    ("aten.mul.Tensor", "aten.mull.Tensor", "there is no operator 'aten.mull.Tensor'", "aten.mull"),
    ("aten.mul.Tensor", "os.system", "there is no operator 'os.system'", "os.system"),
    ("aten.mul.Tensor", "aten.__class__.mro", "there is no operator", "aten.__class__"),
    ("aten.mul.Tensor", "aten.mul", "there is no operator 'aten.mul'", "aten.mul"),
    ("(%x, %w)", "(%x, %v)", "%v is used before it is defined", "%v"),
    ("(%x, %w)", "(%x, %w", "expected ')' before ''", " : f32[batch, 4] @"),
    ("(%x, %w)", "(%x %w)", "expected ')' before '%w)'", "%w)"),
    ("(%x, %w)", "(%x, %w) more", "did not expect 'more'", "more"),
    ("(%x, %w)", "(%x, $w)", "cannot read '$w)'", "$w"),
    ("(%x, %w)", "(%x, [%w)", "expected ']'", ") : f32[batch, 4] @"),
    ("(%x, %w)", "(%x, {os.getcwd()})", "is no size", "{os.getcwd"),
    ("(%x, %w)", "(%x, infinite)", "'infinite' is no value", "infinite"),
    ("(%x, %w)", '(%x, "\\q")', "Invalid \\escape", "%y"),
    ("%z = aten", "%y = aten", "%y is defined twice", "%y"),
    ("%z = aten", "z = aten", "expected '%NAME = OPERATOR(arguments) : TYPE'", "z = aten"),
    ("group=0\n  %z", "group=-1\n  %z", "expected '%NAME = OPERATOR(arguments) : TYPE'", "%y"),
    ('@"layer.0" group=0\n  %z', '@layer.0 group=0\n  %z', "expected '%NAME = OPERATOR(arguments) : TYPE'", "%y"),
    ('weight "w"', 'weight "v"', "there is no weight 'v' beside this text", "%w"),
    ('weight "w"', "weight w", "expected 'weight \"NAME\" #DIGEST'", "%w"),
    ('"rest": [', "rest: [", "'rest:' is no key", "rest"),
    ('"rest": [', "%m: [", "'%m' is no key", "%m: "),
    ('"rest": [', '"rest" [', "expected ':'", "[%m"),
    ("None, (2.5", "None (2.5", "expected ']'", "(2.5"),
    ("return", "retrun", "expected '%NAME", "retrun"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message", "caret"), MALFORMED, ids=[case[1].strip() for case in MALFORMED])
def test_malformed_text(old, new, message, caret):
    assert EXAMPLE.count(old) >= 1
    text = EXAMPLE.replace(old, new, 1)
    with pytest.raises(ParseError) as caught:
        parse(text, WEIGHTS)
    *_, problem, quoted, pointer = str(caught.value).splitlines()
    assert message in problem
    number, _, line = quoted.partition(" | ")
    assert line == text.splitlines()[int(number) - 1]
    assert f"line {int(number)}: " in problem
    column = pointer.index("^") - len("      | ")
    assert line[column:].startswith(caret), f"the caret points at '{line[column:]}'"


@pytest.mark.parametrize("text", ["", "\n", "// nothing", "graph g((), {}) {", EXAMPLE.rstrip("}\n"), EXAMPLE + "more"])
def test_a_text_must_end_with_its_brace(text):
    with pytest.raises(ParseError, match="the text ends before the graph's closing '}'"):
        parse(text, WEIGHTS)


def test_a_graph_must_return():
    with pytest.raises(ParseError, match="a graph ends with its only 'return'"):
        parse(re.sub("  return.*\n", "", EXAMPLE), WEIGHTS)


@pytest.mark.parametrize("line", ["  return %x\n  return %x\n", "  return %x\n  %y = aten.neg.default(%x) : f32[2]\n"])
def test_nothing_follows_the_return(line):
    text = f"graph g((%x,), {{}}) {{\n  %x = input : f32[2]\n{line}}}\n"
    with pytest.raises(ParseError, match="a graph ends with its only 'return'"):
        parse(text, {})


def test_a_weight_must_have_its_digest():
    with pytest.raises(ParseError, match=f"weight 'w' has digest [0-9a-f]*, the text says {digest(WEIGHTS['w'])}"):
        parse(EXAMPLE, {"w": torch.arange(4.0) + 1})


def test_a_file_that_lacks_a_weight(tmp_path):
    graph = parse(EXAMPLE, WEIGHTS)
    save(graph, tmp_path / "graph.txt")
    (tmp_path / "weights" / f"{digest(WEIGHTS['w'])}.safetensors").unlink()
    with pytest.raises(ParseError, match=r"'graph.txt' needs the weight \"w\" in 'weights/.*', which is absent"):
        read(tmp_path / "graph.txt")


@pytest.mark.parametrize("damage", [b"", b"\x00" * 40, b"\xff\xfe not utf-8 \xff"])
def test_damaged_files(damage, tmp_path):
    save(parse(EXAMPLE, WEIGHTS), tmp_path / "graph.txt")
    weight = tmp_path / "weights" / f"{digest(WEIGHTS['w'])}.safetensors"
    whole = weight.read_bytes()
    weight.write_bytes(damage)
    with pytest.raises(GraphcError):
        read(tmp_path / "graph.txt")
    weight.write_bytes(whole)
    (tmp_path / "graph.txt").write_bytes(damage)
    with pytest.raises(GraphcError):
        read(tmp_path / "graph.txt")


def test_swapped_weight_files_are_noticed(tmp_path):
    graph = Graph("g", Structure.of(((), {})), Structure.of((0, 0)))
    graph.set_output([graph.add_weight("a", torch.ones(3)), graph.add_weight("b", torch.zeros(3))])
    save(graph, tmp_path / "graph.txt")
    one, other = (tmp_path / "weights").iterdir()
    one.write_bytes(other.read_bytes())
    with pytest.raises(ParseError, match="has digest"):
        read(tmp_path / "graph.txt")


PIECES = ["%", "\"", "\\", "[", "]", "{", "}", "(", ")", ",", ":", "@", "#", "=", "inf", "nan", "-", "1e9", "²", "\x00",
          " : ", "None", "9" * 30, "group=", "%x", "f32[", "//", "**", "aten.", "\u2028", "input", "weight \"", "0//0",
          "return ", "\n", "9" * 5000, "[" * 2000]  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_damaged_text_is_an_error_of_ours(network, seed):
    rng = random.Random(seed)
    graph = network(rng.choice(["residual", "two_outputs", "embedded", "dynamic_batch"])).graph
    text, weights = rng.choice([(EXAMPLE, WEIGHTS), (dump(graph), graph.weights)])
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(text))
        stop = start + rng.choice([0, 0, 1, 1, 2, 5, 30])
        other = rng.randrange(len(text))
        piece = rng.choice([*PIECES, "", text[other : other + rng.randrange(12)]])
        text = text[:start] + piece + text[stop:]
    try:
        again = parse(text, weights)
        verify(again)
    except (ParseError, VerificationError):
        return
    assert dump(parse(dump(again), weights)) == dump(again)


def test_ten_thousand_nodes():
    graph = chain(10_000)
    text = dump(graph)
    again = parse(text, {})
    verify(again)
    assert dump(again) == text
    assert len(again.calls) == 10_000


def test_public_names():
    assert graphc.dump(graphc.parse(EXAMPLE, WEIGHTS)) == EXAMPLE
