"""The best choice of all under bounds, as an integer program for HiGHS.

    min  sum loss[i, f] x[i, f]      (or bytes, or nanoseconds)
    s.t. sum_f x[i, f] = 1           one format for each item, x in {0, 1}
         sum bytes x <= size, sum nanoseconds x <= latency, sum loss x <= loss

as HAWQ-V3 states it (Yao et al., ICML 2021, section 3.4), over formats of all kinds.
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
) -> Assignment:
    """The assignment of least `minimize` within the bounds: `size` in bytes of the items' weights, `latency` in
    nanoseconds of the items, `loss` as the options have it. Options of infinite loss are never chosen.

    The same choices give the same assignment. Raises BudgetError, with the least that there is, where nothing fits.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    given: dict[Measure, float | None] = {"bytes": size, "nanoseconds": latency, "loss": loss}
    bounds = {measure: bound for measure, bound in given.items() if bound is not None}
    rows: list[tuple[int, Option]] = []
    for place, choice in enumerate(choices):
        kept = _undominated(choice.options)
        if not kept:
            raise BudgetError(f"no format of layer '{choice.item.name}' has a finite loss")
        rows += [(place, option) for option in kept]
    if not rows:
        return _within(Assignment((), ()), bounds)
    one = np.zeros((len(choices), len(rows)))
    one[[place for place, _ in rows], range(len(rows))] = 1
    values = {name: np.array([getattr(option, name) for _, option in rows], float) for name in (*bounds, minimize)}
    tightened = dict(bounds)
    while True:
        constraints = [LinearConstraint(one, 1, 1)]
        for name, bound in tightened.items():
            unit = abs(bound) or 1.0  # coefficients near 1: the solver's tolerances are absolute
            constraints.append(LinearConstraint(values[name][None] / unit, -np.inf, bound / unit))
        objective = values[minimize] / (_unit(values[minimize]))
        solved = milp(
            objective,
            integrality=np.ones(len(rows)),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if solved.x is None:
            raise BudgetError(_nothing_fits(choices, bounds))
        picked = [option for (_, option), x in zip(rows, solved.x, strict=True) if x > 0.5]
        found = Assignment(tuple(choice.item for choice in choices), tuple(picked))
        over = {name: getattr(found, name) - bound for name, bound in bounds.items() if getattr(found, name) > bound}
        if not over:
            return found
        for name, excess in over.items():  # within the solver's tolerance, but not within the bound
            tightened[name] -= 2 * excess


def least(choices: Sequence[Choice], measure: Measure) -> Assignment:
    """The assignment of least `measure`, whatever else; of equals, that of least loss."""
    picked = tuple(
        min(choice.options, key=lambda option: (getattr(option, measure), option.loss, option.format))
        for choice in choices
    )
    return Assignment(tuple(choice.item for choice in choices), picked)


def _undominated(options: Sequence[Option]) -> list[Option]:
    """The options that no other one equals or beats in everything; of equal ones the first."""
    finite = [option for option in options if math.isfinite(option.loss)]
    ordered = sorted(finite, key=lambda option: (option.bytes, option.loss, option.nanoseconds, option.format))
    kept: list[Option] = []
    for option in ordered:
        if not any(o.loss <= option.loss and o.nanoseconds <= option.nanoseconds for o in kept):
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


def _nothing_fits(choices: Sequence[Choice], bounds: dict[Measure, float]) -> str:
    lines = []
    for name, bound in bounds.items():
        lines.append(
            f"  {name}: at most {bound:,.6g}, the least that there is {getattr(least(choices, name), name):,.6g}"
        )
    return "no assignment of formats keeps all bounds:\n" + "\n".join(lines)
