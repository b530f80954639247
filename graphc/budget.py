"""What the compiled model may cost."""

from __future__ import annotations

import re
from dataclasses import dataclass

from graphc.errors import BudgetError

_UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Budget:
    """Upper bounds; None where there is none.

    size: bytes of stored weights and code, as a number or as text ("300 kB"). metric_drop: how far the metric may
    fall below the float model's, in the metric's own unit. latency: milliseconds of one run on the target.

    >>> Budget(size="300 kB", metric_drop=0.5).bytes
    300000
    """

    size: int | str | None = None
    metric_drop: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        bounds = (self.bytes, self.metric_drop, self.latency)
        if any(bound is not None and not bound >= 0 for bound in bounds):
            raise BudgetError(f"a budget's bounds are numbers from 0 up, got {self}")

    @property
    def bytes(self) -> int | None:
        """`size` as a number. Raises BudgetError where it cannot be read."""
        if self.size is None or isinstance(self.size, int):
            return self.size
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", str(self.size))
        if found is None or found[2] not in _UNITS:
            raise BudgetError(
                f"cannot read the size '{self.size}'; expected bytes or a text such as '300 kB' or '1.5 MiB'"
            )
        return int(float(found[1]) * _UNITS[found[2]])
