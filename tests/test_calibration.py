"""Calibration: which interval eight bits span, and data that cannot be used."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from graphc.calibration import Observer, batches, interval
from graphc.errors import CalibrationError
from graphc.graph import Graph
from graphc.passes.quantize import Quantize
from graphc.pipeline import PassContext
from graphc.structure import Structure
from graphc.tensor_type import SymbolRange, TensorType, symbol

METHODS = ["minmax", "percentile", "mse", "entropy"]


def observed(*values: torch.Tensor) -> Observer:
    observer = Observer()
    for value in values:
        observer.see_range(value)
    for value in values:
        observer.see_counts(value)
    return observer


def error(values: torch.Tensor, low: float, high: float, levels: int) -> float:
    """Mean squared error of quantization over an interval."""
    scale = (high - low) / (levels - 1)
    zero = round(-low / scale)
    q = ((values.double() / scale).round() + zero).clamp(0, levels - 1)
    return float((((q - zero) * scale - values) ** 2).mean())


NORMAL = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
TANH = torch.tanh(NORMAL) - 0.5
OUTLIERS = torch.cat([NORMAL, torch.tensor([60.0, -45.0])])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "values",
    [NORMAL, NORMAL.abs(), -NORMAL.abs() - 3, NORMAL.abs() + 3, OUTLIERS, torch.zeros(5), torch.full((5,), -2.0),
     torch.ones(1), NORMAL * 1e-30, NORMAL * 1e30, torch.tensor([0.0, 1.0]), (NORMAL > 0).float()],
    ids=["normal", "positive", "far below", "far above", "outliers", "zeros", "constant", "one", "tiny", "huge", "two",
         "bits"],
)  # fmt: skip
def test_the_interval_holds_nought_and_no_more_than_what_was_seen(method, values):
    low, high = interval(observed(values), method)
    assert min(float(values.min()), 0) <= low <= 0 <= high <= max(float(values.max()), 0)
    assert high > low or not values.any()


def test_minmax_is_all_that_was_seen():
    assert interval(observed(torch.tensor([1.0, -3.0]), torch.tensor([7.5])), "minmax") == (-3.0, 7.5)


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_outliers_are_clipped(method):
    low, high = interval(observed(OUTLIERS), method)
    assert -30 < low < -2
    assert 2 < high < 40


@pytest.mark.parametrize("values", [OUTLIERS, NORMAL**3, TANH], ids=["outliers", "cubes", "tanh"])
@pytest.mark.parametrize("levels", [256, 16])
def test_mse_is_nearly_the_best_clipping(values, levels):
    observer = observed(values)
    found = error(values, *interval(observer, "mse", levels), levels)
    best = min(error(values, observer.low * r / 100, observer.high * r / 100, levels) for r in range(20, 101))
    assert found <= best * 1.05
    if levels == 16 and values is not TANH:
        assert found < error(values, observer.low, observer.high, levels) * 0.9


def test_percentile_cuts_so_much_and_no_more():
    values = torch.linspace(-1, 3, 10_001)
    low, high = interval(observed(values), "percentile", percentile=95.0)
    assert low == pytest.approx(-0.8, abs=0.01)
    assert high == pytest.approx(2.8, abs=0.01)


def test_entropy_keeps_a_uniform_distribution_whole():
    low, high = interval(observed(torch.linspace(-1, 1, 100_001)), "entropy")
    assert low == pytest.approx(-1, abs=0.02)
    assert high == pytest.approx(1, abs=0.02)


def test_batches_count_together():
    apart = observed(NORMAL[:5000], NORMAL[5000:])
    assert torch.equal(apart.counts, observed(NORMAL).counts)
    assert apart.counts.sum() == len(NORMAL)


# -- data ----------------------------------------------------------------------------------------


def graph(batch=2, name="x") -> Graph:
    graph = Graph("g", Structure.of(((0,), {})), Structure.of(0), symbols={"n": SymbolRange(1, 4)})
    x = graph.add_input(name, TensorType((batch, 3), torch.float32))
    graph.set_output([graph.call(torch.ops.aten.relu.default, x)])
    return graph


X = torch.randn(2, 3)


@pytest.mark.parametrize(
    "data",
    [[X, X], [(X,), [X]], iter([X, X]), (X for _ in range(2)), [X.numpy(), [X.tolist()]],
     [(X, 3), (X, torch.tensor([1, 2]))], [torch.cat([X, X])],
     torch.utils.data.DataLoader(torch.cat([X, X]), batch_size=2),
     torch.stack([X, X]),
     [np.ones((2, 3), np.float32), X]],
    ids=["tensors", "tuples", "iterator", "generator", "numpy and lists", "labels", "larger batch", "loader", "stacked",
         "mixed"],
)  # fmt: skip
def test_data_in_every_form(data):
    found = batches(graph(), data)
    assert [[tuple(leaf.shape) for leaf in leaves] for leaves in found] == [[(2, 3)], [(2, 3)]]
    assert all(leaf.dtype == torch.float32 for leaves in found for leaf in leaves)


def test_keyword_inputs():
    known = Graph("g", Structure.of(((), {"x": 0, "y": 0})), Structure.of(0))
    x, y = (known.add_input(name, TensorType((2, 3), torch.float32)) for name in "xy")
    known.set_output([known.call(torch.ops.aten.sub.Tensor, x, y)])
    for item in ({"y": X + 1, "x": X}, (X, X + 1), [X, X + 1]):
        ((one, other),) = batches(known, [item])
        assert torch.equal(one, X)
        assert torch.equal(other, X + 1)
    with pytest.raises(CalibrationError, match=r"calibration batch 0: .*'y'"):
        batches(known, [{"x": X}])


def test_a_last_piece_is_filled_up_from_the_start():
    whole = torch.arange(15.0).reshape(5, 3)
    found = batches(graph(), [whole])
    assert [leaves[0][:, 0].tolist() for leaves in found] == [[0, 3], [6, 9], [12, 0]]


def test_a_small_batch_is_repeated():
    found = batches(graph(4), [torch.arange(9.0).reshape(3, 3)])
    assert found[0][0][:, 0].tolist() == [0, 3, 6, 0]


def test_a_dynamic_batch_is_cut_at_its_maximum():
    found = batches(graph(symbol("n")), [torch.ones(9, 3), torch.ones(2, 3)])
    assert [len(leaves[0]) for leaves in found] == [4, 4, 1, 2]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "the calibration data is empty"),
        ([], "the calibration data is empty"),
        (iter(()), "the calibration data is empty"),
        ([X, X * math.nan], "calibration batch 1 holds NaN or infinite values"),
        ([X / 0], "calibration batch 0 holds NaN or infinite values"),
        ([X[:, :2]], r"calibration batch 0: input 'x' must be f32\[2, 3\], got f32\[2, 2\]"),
        ([X[0]], r"calibration batch 0: input 'x' must be f32\[2, 3\]"),
        ([X.double()], r"calibration batch 0: input 'x' must be f32\[2, 3\], got f64\[2, 3\]"),
        ([torch.ones(2, 3, dtype=torch.int64)], r"got i64\[2, 3\]"),
        ([torch.ones(0, 3)], r"calibration batch 0: input 'x' must be f32\[2, 3\], got f32\[0, 3\]"),
        ([torch.tensor(1.0)], r"calibration batch 0: input 'x' must be f32\[2, 3\], got f32\[\]"),
        ([()], "calibration batch 0"),
        (["text"], "calibration batch 0: input 'x' is no tensor, but a str"),
        ([None], "calibration batch 0"),
        ([{"z": X}], "calibration batch 0: args must have 1 items, got 0"),
        (3, "the calibration data must be an iterable of batches, not a int"),
        (X[0], "calibration batch 0: input 'x' must be"),
    ],
    ids=str,
)
def test_data_that_cannot_be_used(data, message):
    with pytest.raises(CalibrationError, match=message):
        batches(graph(), data)


def test_values_inside_the_network_must_be_finite():
    """Finite inputs whose activations overflow: no scale would be right."""
    known = Graph("g", Structure.of(((0,), {})), Structure.of(0))
    x = known.add_input("x", TensorType((2, 3), torch.float32))
    big = known.call(torch.ops.aten.exp.default, x)
    big.meta["path"] = "body.exp"
    known.set_output([known.call(torch.ops.aten.linear.default, big, known.add_weight("w", torch.ones(4, 3)))])
    with pytest.raises(
        CalibrationError, match=r"%exp_default of layer 'body.exp' is NaN or infinite on the calibration data"
    ):
        Quantize().run(known, PassContext(calibration=[[torch.full((2, 3), 100.0)]]))


def test_quantizing_needs_data():
    known = Graph("g", Structure.of(((0,), {})), Structure.of(0))
    x = known.add_input("x", TensorType((2, 3), torch.float32))
    known.set_output([known.call(torch.ops.aten.linear.default, x, known.add_weight("w", torch.ones(4, 3)))])
    with pytest.raises(CalibrationError, match="quantize needs calibration data"):
        Quantize().run(known, PassContext())
    assert Quantize().run(graph(), PassContext()) is not None
