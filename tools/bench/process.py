"""Workers seen from the bench: they run one at a time, and are stopped in between."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import IO, Any

from graphc.errors import GraphcError


class EngineError(GraphcError):
    """An engine cannot do what it was asked for. `missing`: because a package is not installed."""

    def __init__(self, text: str, missing: bool = False) -> None:
        super().__init__(text)
        self.missing = missing


class Process:
    """A worker on the CPUs `cpus`. Between requests it is stopped (SIGSTOP), with all its threads and children, so that
    no engine's spinning threads disturb another's runs."""

    def __init__(self, cpus: set[int], log: IO[str] | int = subprocess.DEVNULL) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(len(cpus)), "MKL_NUM_THREADS": str(len(cpus))}
        # The worker inherits the affinity at once, before any library counts the CPUs.
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cpus)
        try:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "graphc.tools.bench.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, bufsize=1, env=environment,
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.sched_setaffinity(0, own)
        self._signal(signal.SIGSTOP)

    @property
    def pid(self) -> int:
        return self._child.pid

    def ask(self, do: str, timeout: float, **request: Any) -> Mapping[str, Any]:
        """Let the worker go on until it has replied. Raises EngineError where it failed, died or took too long; then
        the worker is ended."""
        self._signal(signal.SIGCONT)
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(json.dumps({"do": do, **request}) + "\n")
            ready, _, _ = select.select([self._child.stdout], [], [], timeout)
            line = self._child.stdout.readline() if ready else None
        except BrokenPipeError:
            line = ""
        if not line:
            died = self._child.poll() if line is None else self._child.wait()
            self.end()
            raise EngineError(
                f"no reply in {timeout:.0f} s" if line is None else f"the process ended with status {died}"
            )
        self._signal(signal.SIGSTOP)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            self.end()
            raise EngineError(reply["error"], reply["missing"])
        return reply

    def end(self) -> None:
        """Kill the worker and its children; may be called again."""
        self._signal(signal.SIGKILL)
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None and not stream.closed:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._child.pid, number)
        except ProcessLookupError:
            return
