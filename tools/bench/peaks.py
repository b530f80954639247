"""What the machine can do at most; `python -m graphc.tools.bench.peaks` prints its arithmetic as JSON.

Loops of nothing but multiply-accumulate instructions, and of nothing but loads (as they are, and asked for ahead), one
thread a CPU (peaks.c). Arithmetic stays the same for hours; what a virtual machine can read changes within a minute,
with what its neighbours read: it is measured beside every turn of an engine.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from graphc.runtime import zig
from graphc.target import Target

# For each precision: features, function, and multiplications and additions of a round; the first that fits is taken.
_LOOPS: dict[str, dict[str, tuple[tuple[tuple[str, ...], str, int], ...]]] = {
    "x86-64": {
        "fp32": ((("avx512f",), "fma_avx512", 12 * 32), (("avx2", "fma"), "fma_avx2", 12 * 16)),
        "bf16": ((("amx-bf16",), "dot_amx_bf16", 4 * 16384), (("avx512bf16",), "dot_avx512bf16", 12 * 64)),
        "int8": (
            (("amx-int8",), "dot_amx_int8", 4 * 32768),
            (("avx512vnni",), "dot_avx512vnni", 12 * 128),
            (("avxvnni",), "dot_avxvnni", 12 * 64),
        ),
    },
    "arm64": {
        "fp32": ((("neon",), "fma_neon", 12 * 8),),
        "bf16": ((("bf16",), "dot_bf16", 12 * 32),),
        "int8": ((("i8mm",), "dot_i8mm", 12 * 64), (("dotprod",), "dot_dotprod", 12 * 32)),
    },
}

_BYTES = 256 << 20  # read by each thread: more than any cache holds


class Peaks:
    """Loops for `threads` threads on a target's instructions."""

    def __init__(self, target: Target, threads: int) -> None:
        self._target, self._threads = target, threads
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "peaks.so")
            zig.link_library(target.triple, Path(__file__).with_name("peaks.c"), path)
            self._library = ctypes.CDLL(str(path))
        areas = [np.ones(_BYTES // 8) for _ in range(threads)]
        self._readers = []
        for function in (self._library.read_memory, self._library.read_ahead):
            function.argtypes = [ctypes.c_void_p, ctypes.c_int64]
            self._readers.append([_reader(function, area) for area in areas])

    def arithmetic(self) -> dict[str, float]:
        """Operations a second of each precision that the machine has instructions for."""
        found = {}
        for precision, choices in _LOOPS[self._target.arch].items():
            for features, name, operations in choices:
                if self._target.has(*features):
                    loop = _rounds(getattr(self._library, name))
                    rounds = 1000
                    while (seconds := _together([loop] * self._threads, rounds)) < 0.05:
                        rounds *= 4
                    best = min(seconds, *(_together([loop] * self._threads, rounds) for _ in range(4)))
                    found[precision] = operations * rounds * self._threads / best
                    break
        return found

    def read(self) -> float:
        """Bytes a second read from memory, now: the best of two passes each way."""
        best = min(_together(readers, 1) for readers in self._readers for _ in range(2))
        return _BYTES * self._threads / best


def _rounds(function: Callable[[int], None]) -> Callable[[int], None]:
    function.argtypes = [ctypes.c_int64]  # type: ignore[attr-defined]
    return function


def _reader(
    function: Callable[[int, int], None], area: np.ndarray[tuple[int], np.dtype[np.float64]]
) -> Callable[[int], None]:
    return lambda rounds: function(area.ctypes.data, area.nbytes)


def _together(loops: list[Callable[[int], None]], rounds: int) -> float:
    """Seconds until all have done their rounds, each in a thread of its own; ctypes lets them run side by side."""
    gate = threading.Barrier(len(loops) + 1)

    def work(loop: Callable[[int], None]) -> None:
        gate.wait()
        loop(rounds)

    threads = [threading.Thread(target=work, args=(loop,)) for loop in loops]
    for thread in threads:
        thread.start()
    gate.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


if __name__ == "__main__":
    json.dump(Peaks(Target.parse("host"), len(os.sched_getaffinity(0))).arithmetic(), sys.stdout)
