"""The engines of the bench, one file each.

An engine's module has

    PRECISIONS                              {kind of workload: names of the precisions it runs at}
    prepare(work, batch, precision, folder) what is slow and does not depend on the threads: converts, calibrates;
                                            leaves files in the folder
    load(work, batch, precision, threads, folder) -> Run

and is imported only in a process of its own. A Run is called without arguments and returns the outputs of the
workload's inputs, in the order of the torch module, as arrays or tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Run = Callable[[], list[Any]]
