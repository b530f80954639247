"""An engine in a process of its own: `python -m graphc.tools.bench.worker`, driven by lines of JSON.

Request                                   Reply
{"do": "prepare", "case": {...}}          {}
{"do": "load", "case": {...}}             {}                     threads run from now on
{"do": "time", "warm": w, "count": n}     {"seconds": [...]}     n runs, after w that are not timed
{"do": "outputs", "path": file}           {"reference": bool}    writes the outputs, as safetensors
{"do": "score", "limit": n}               {"score": x}           the workload's metric on its first n items

A case is {"module", "workload", "batch", "precision", "threads", "folder"}. What goes wrong is replied as {"error":
text, "missing": whether a package is not there}. The process keeps the CPUs that it was given when it was started.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from graphc.tools.bench.case import Case
from graphc.tools.bench.engines import Bind, Run


class Session:
    """What stays between requests: the loaded engine."""

    case: Case
    engine: Any
    bind: Bind
    run: Run

    def answer(self, do: str, **request: Any) -> dict[str, Any]:
        reply: dict[str, Any] = getattr(self, do)(**request)
        return reply

    def prepare(self, case: dict[str, Any]) -> dict[str, Any]:
        self._open(case)
        self.engine.prepare(self.case)
        return {}

    def load(self, case: dict[str, Any]) -> dict[str, Any]:
        self._open(case)
        self.bind = self.engine.load(self.case)
        self.run = self.bind(self.case.inputs)
        return {}

    def _open(self, case: dict[str, Any]) -> None:
        module, _, name = case["workload"].partition(":")
        work = import_module(module).WORKLOADS[name]
        self.case = Case(work, case["batch"], case["precision"], case["threads"], Path(case["folder"]))
        self.engine = import_module(case["module"])

    def time(self, warm: int, count: int) -> dict[str, Any]:
        for _ in range(warm):
            self.run()
        seconds = []
        for _ in range(count):
            start = time.perf_counter()
            self.run()
            seconds.append(time.perf_counter() - start)
        return {"seconds": seconds}

    def outputs(self, path: str) -> dict[str, Any]:
        found = {f"output{index}": _tensor(x) for index, x in enumerate(self.run())}
        own = hasattr(self.engine, "reference")
        if own:
            found |= {f"reference{index}": _tensor(x) for index, x in enumerate(self.engine.reference(self.case))}
        save_file(found, path)
        return {"reference": own}

    def score(self, limit: int) -> dict[str, Any]:
        evaluate = self.case.work.evaluate
        if evaluate is None:
            return {"score": None}
        batch = self.case.batch  # whole ones: shapes are fixed
        run = lambda *inputs: [_tensor(x) for x in self.bind(inputs)()]  # noqa: E731
        return {"score": evaluate(run, max(1, limit // batch) * batch, batch)}


def _tensor(x: Any) -> torch.Tensor:
    """A copy in fp32 of what an engine returned."""
    found = x if isinstance(x, torch.Tensor) else torch.from_numpy(np.array(x))
    return found.detach().float().clone().contiguous()


@contextlib.contextmanager
def _replies() -> Iterator[Any]:
    """Standard output for replies alone: what engines print goes to standard error."""
    with os.fdopen(os.dup(1), "w") as stream:
        os.dup2(2, 1)
        yield stream


def _die_with_parent() -> None:
    """A stopped worker would outlive a bench that is killed: Linux shall kill it too (PR_SET_PDEATHSIG)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(1, int(signal.SIGKILL))


def main() -> None:
    _die_with_parent()
    session = Session()
    with _replies() as stream:
        for line in sys.stdin:
            try:
                reply = session.answer(**json.loads(line))
            except Exception as error:
                traceback.print_exc()
                lines = str(error).strip().splitlines() or [""]
                reply = {
                    "error": f"{type(error).__name__}: {lines[0]}"[:300],
                    "missing": isinstance(error, ImportError),
                }
            stream.write(json.dumps(reply) + "\n")
            stream.flush()
    # Some engines' threads do not end by themselves.
    os._exit(0)


if __name__ == "__main__":
    main()
