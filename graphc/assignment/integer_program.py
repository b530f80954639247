"""The best choice of all under bounds, as an integer program for HiGHS.

    min  sum loss[i, f] x[i, f]      (or bytes, or nanoseconds)
    s.t. sum_f x[i, f] = 1           one format for each item, x in {0, 1}
         x[i, f] <= y[kind of i, f]  the kernels that are needed: items of one kind in one format share theirs
         sum bytes x + kernel sum y <= size, sum nanoseconds x <= latency, sum loss x <= loss

as HAWQ-V3 states it (Yao et al., ICML 2021, section 3.4), over formats of all kinds. y is the fixed charge of facility
location: in small networks a format more may cost more code than it saves in weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from graphc.assignment import Assignment, Choice, Option
from graphc.errors import BudgetError

Measure = Literal["loss", "bytes", "nanoseconds"]


def integer_program(
    choices: Sequence[Choice],
    *,
    size: float | None = None,
    latency: float | None = None,
    loss: float | None = None,
    minimize: Measure = "loss",
    kernel: float = 0.0,
) -> Assignment:
    """The assignment of least `minimize` within the bounds: `size` in bytes of the items' weights and of their kernels,
    `latency` in nanoseconds of the items, `loss` as the options have it. Options of infinite loss are never chosen.

    kernel: bytes of the code that an item of a kind that has not yet been seen takes in a format; nought counts weights
    alone. The same choices give the same assignment. Raises BudgetError, with the least that there is, where nothing
    fits.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    given: dict[Measure, float | None] = {"bytes": size, "nanoseconds": latency, "loss": loss}
    bounds = {measure: bound for measure, bound in given.items() if bound is not None}
    rows: list[tuple[int, Option]] = []
    for place, choice in enumerate(choices):
        kept = _undominated(choice.options, kernel)
        if not kept:
            raise BudgetError(f"no format of layer '{choice.item.name}' has a finite loss")
        rows += [(place, option) for option in kept]
    if not rows:
        return _within(Assignment((), ()), bounds)
    kernels: dict[tuple[str, str], int] = {}
    if kernel:
        for place, option in rows:
            kernels.setdefault((choices[place].item.kind, option.format), len(rows) + len(kernels))
    columns = len(rows) + len(kernels)

    def matrix(entries: Sequence[tuple[int, int, float]], height: int) -> coo_array:
        down, across, values = zip(*entries, strict=True)
        return coo_array((values, (down, across)), shape=(height, columns))

    fixed = [LinearConstraint(matrix([(place, x, 1.0) for x, (place, _) in enumerate(rows)], len(choices)), 1, 1)]
    if kernel:
        needed = [kernels[choices[place].item.kind, option.format] for place, option in rows]
        entries = [entry for x, y in enumerate(needed) for entry in ((x, x, 1.0), (x, y, -1.0))]
        fixed.append(LinearConstraint(matrix(entries, len(rows)), -np.inf, 0))
    values = {name: np.zeros(columns) for name in (*bounds, minimize)}
    for name, row in values.items():
        row[: len(rows)] = [getattr(option, name) for _, option in rows]
        row[len(rows) :] = kernel if name == "bytes" else 0.0
    tightened = dict(bounds)
    while True:
        constraints = list(fixed)
        for name, bound in tightened.items():
            unit = abs(bound) or 1.0  # coefficients near 1: the solver's tolerances are absolute
            constraints.append(LinearConstraint(values[name][None] / unit, -np.inf, bound / unit))
        solved = milp(
            values[minimize] / _unit(values[minimize]),
            integrality=np.ones(columns),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if solved.x is None:
            raise BudgetError(_nothing_fits(choices, bounds, kernel))
        picked = [option for (_, option), x in zip(rows, solved.x[: len(rows)], strict=True) if x > 0.5]
        found = Assignment(tuple(choice.item for choice in choices), tuple(picked))
        over = {name: excess for name, bound in bounds.items() if (excess := _taken(found, name, kernel) - bound) > 0}
        if not over:
            return found
        for name, excess in over.items():  # within the solver's tolerance, but not within the bound
            tightened[name] -= 2 * excess


def _taken(found: Assignment, measure: Measure, kernel: float) -> float:
    return found.size(kernel) if measure == "bytes" else float(getattr(found, measure))


def _undominated(options: Sequence[Option], kernel: float) -> list[Option]:
    """The options that no other one, its kernel included, equals or beats in everything; of equal ones the first."""
    finite = [option for option in options if math.isfinite(option.loss)]
    ordered = sorted(finite, key=lambda option: (option.bytes, option.loss, option.nanoseconds, option.format))
    kept: list[Option] = []
    for option in ordered:
        better = (o for o in kept if o.loss <= option.loss and o.nanoseconds <= option.nanoseconds)
        if all(o.bytes + kernel > option.bytes for o in better):
            kept.append(option)
    return kept


def _unit(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """A scale at which most objective coefficients are far above the solver's tolerance of 1e-7."""
    positive = np.abs(values[values != 0])
    return float(np.quantile(positive, 0.1)) if len(positive) else 1.0


def _within(found: Assignment, bounds: dict[Measure, float]) -> Assignment:
    for name, bound in bounds.items():
        if bound < 0:
            raise BudgetError(f"no assignment fits: the bound on {name} is {bound:.6g}, below what stays as it is")
    return found


def _nothing_fits(choices: Sequence[Choice], bounds: dict[Measure, float], kernel: float) -> str:
    lines = []
    for name, bound in bounds.items():
        least = _taken(integer_program(choices, minimize=name, kernel=kernel), name, kernel)
        lines.append(f"  {name}: at most {_number(bound)}, the least that there is {_number(least)}")
    return "no assignment of formats keeps all bounds:\n" + "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.6g}"
