"""Run an artifact for another architecture: a static runner under qemu's user-mode emulation, spoken to over pipes."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from graphc.errors import GraphcError, TargetError
from graphc.runtime import zig
from graphc.runtime.loader import Arrays

_QEMU = {"arm64": "qemu-aarch64", "x86-64": "qemu-x86_64"}
_TRIPLE = {"arm64": "aarch64-linux-musl", "x86-64": "x86_64-linux-musl"}
_ERROR_SIZE = 256  # GRAPHC_ERROR_SIZE

logger = logging.getLogger("graphc")


class Emulator:
    """A process that has loaded an artifact and runs it, any number of times: the same calls as `loader.Native`.

    `artifact` is the whole file's content, `num_steps` the number of steps of a run. Raises TargetError that says what
    to install. One call at a time: the caller holds a lock.
    """

    def __init__(self, artifact: memoryview, arch: str, num_steps: int, threads: int) -> None:
        qemu = find(arch)
        logger.warning("running %s code under %s: the results are the chip's, the speed is not", arch, qemu)
        self._num_steps = num_steps
        fd = os.memfd_create("graphc")
        with open(fd, "wb") as file:
            file.write(artifact)
            file.flush()
            self._process = subprocess.Popen(
                [qemu, "-cpu", "max", str(build_runner(arch)), f"/proc/self/fd/{fd}", str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[fd],
            )
        self._release = weakref.finalize(self, _stop, self._process)
        self._expect_ok()

    @property
    def alive(self) -> bool:
        """False once the process has ended: make another Emulator."""
        return self._process.poll() is None

    def shapes(self, symbols: Sequence[int], num_dims: int) -> list[int]:
        """The sizes of all inputs, then of all outputs, flat (`num_dims` in all)."""
        self._send(b"s", _int64(symbols))
        self._expect_ok()
        return [int(size) for size in np.frombuffer(self._receive(8 * num_dims), np.int64)]

    def run(
        self, inputs: Arrays, symbols: Sequence[int], outputs: Arrays, nanoseconds: NDArray[np.uint64] | None = None
    ) -> None:
        """Run once on dense inputs into dense outputs; `nanoseconds` gets each step's duration under emulation."""
        self._send(b"r", _int64(symbols), *(array.tobytes() for array in inputs))
        self._expect_ok()
        durations = self._receive(8 * self._num_steps)
        for output in outputs:
            output.reshape(-1).view(np.uint8)[:] = np.frombuffer(self._receive(output.nbytes), np.uint8)
        if nanoseconds is not None:
            nanoseconds[:] = np.frombuffer(durations, np.uint64)

    def _send(self, *parts: bytes) -> None:
        pipe = cast(IO[bytes], self._process.stdin)
        try:
            pipe.writelines(parts)
            pipe.flush()
        except BrokenPipeError:
            self._died()

    def _receive(self, size: int) -> bytes:
        data = cast(IO[bytes], self._process.stdout).read(size)
        if len(data) != size:
            self._died()
        return data

    def _expect_ok(self) -> None:
        if self._receive(1) != b"\0":
            raise GraphcError(self._receive(_ERROR_SIZE).split(b"\0")[0].decode(errors="replace"))

    def _died(self) -> NoReturn:
        message = cast(IO[bytes], self._process.stderr).read().decode(errors="replace").strip()
        raise GraphcError(f"the emulated program ended with status {self._process.wait()}: {message}")


def find(arch: str) -> str:
    """The emulator of an architecture. Raises TargetError that says what to install."""
    qemu = shutil.which(_QEMU[arch])
    if qemu is None:
        raise TargetError(
            f"{arch} code does not run on this machine: take it to the device, or install {_QEMU[arch]} to emulate it "
            "(Debian, Ubuntu: apt install qemu-user)"
        )
    return qemu


def build_runner(arch: str) -> Path:
    """The runner for an architecture, built on first use into the user's cache directory."""
    digest = hashlib.sha256(zig.version().encode())
    for source in sorted(zig.SOURCES.glob("*.[ch]")):
        digest.update(source.read_bytes())
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphc"
    runner = cache / f"runner-{arch}-{digest.hexdigest()[:16]}"
    if not runner.exists():
        logger.info("building the runner of %s code into %s, once: this takes up to a minute", arch, cache)
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as beside:
            built = Path(beside) / "runner"
            zig.link_runner(_TRIPLE[arch], built)
            built.replace(runner)
    return runner


def _int64(values: Sequence[int]) -> bytes:
    return np.asarray(values, np.int64).tobytes()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process: it leaves its loop when its input ends."""
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None and not pipe.closed:
            with suppress(BrokenPipeError):
                pipe.close()
    process.kill()
    process.wait()
