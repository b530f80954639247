"""Run an artifact's code in this process: loaded from memory, with Python threads as the pool's workers."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from graphc.errors import ArtifactError, GraphcError, TargetError

_ABI = 1
_ALIGNMENT = 64
_AT_HWCAP, _AT_HWCAP2 = 16, 26

# CPU features that an instruction emulator in this process stands in for: code that needs them may run on a CPU that
# lacks them. Only tests fill it.
EMULATED_FEATURES: set[str] = set()

Bytes: TypeAlias = NDArray[np.uint8]
Arrays: TypeAlias = Sequence[NDArray[Any]]


class _Program(ctypes.Structure):
    """graphc_program of model.h."""

    _fields_ = (
        ("abi", ctypes.c_uint32),
        ("arena_bytes", ctypes.c_int64),
        ("state_bytes", ctypes.c_int64),
        ("weights_bytes", ctypes.c_int64),
        ("num_inputs", ctypes.c_int32),
        ("num_outputs", ctypes.c_int32),
        ("num_symbols", ctypes.c_int32),
        ("num_init_steps", ctypes.c_int32),
        ("num_steps", ctypes.c_int32),
        ("inputs", ctypes.c_void_p),
        ("outputs", ctypes.c_void_p),
        ("symbols", ctypes.c_void_p),
        ("steps", ctypes.c_void_p),
        ("shapes", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)),
        ("features", ctypes.POINTER(ctypes.c_char_p)),
    )


class _Frame(ctypes.Structure):
    """graphc_frame of model.h."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("weights", "state", "arena", "inputs", "outputs", "symbols"))


class Native:
    """A loaded code section with its weights and working memory.

    `code` and `weights` are the artifact's sections, `steps` the names of the program's steps. Raises TargetError where
    this CPU lacks a feature that the code uses. One call at a time: the caller holds a lock.
    """

    alive = True  # what Emulator tells of its process

    def __init__(self, code: memoryview, weights: memoryview, steps: Sequence[str], threads: int) -> None:
        library, fd = _load(code)
        workers: list[threading.Thread] = []
        self._release = weakref.finalize(self, _unload, library, fd, workers)
        library.graphc_program_get.restype = ctypes.POINTER(_Program)
        program = library.graphc_program_get().contents
        _check(library, program, len(weights), len(steps))
        self._library, self._program, self._names = library, program, steps
        self._steps = program.num_init_steps, program.num_steps
        self._weights = _aligned(weights)
        self._state = _allocate(program.state_bytes)
        self._arena = _allocate(program.arena_bytes)
        library.graphc_steps.argtypes = (ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p)
        self._inputs = (ctypes.c_void_p * program.num_inputs)()
        self._outputs = (ctypes.c_void_p * program.num_outputs)()
        self._symbols = (ctypes.c_int64 * program.num_symbols)()
        pointers = (self._weights.ctypes.data, self._state.ctypes.data, self._arena.ctypes.data)
        arrays = map(ctypes.addressof, (self._inputs, self._outputs, self._symbols))
        self._frame = _Frame(*pointers, *arrays)
        self._frame_at = ctypes.addressof(self._frame)
        library.graphc_pool_start(threads)
        for _ in range(threads - 1):
            workers.append(threading.Thread(target=library.graphc_worker, name="graphc", daemon=True))
            workers[-1].start()
        self._run_steps(0, program.num_init_steps, None)

    def shapes(self, symbols: Sequence[int], num_dims: int) -> list[int]:
        """The sizes of all inputs, then of all outputs, flat (`num_dims` in all)."""
        dims = (ctypes.c_int64 * num_dims)()
        self._program.shapes((ctypes.c_int64 * len(symbols))(*symbols), dims)
        return list(dims)

    def run(
        self, inputs: Arrays, symbols: Sequence[int], outputs: Arrays, nanoseconds: NDArray[np.uint64] | None = None
    ) -> None:
        """Run once on dense inputs into dense outputs; `nanoseconds` gets each step's duration."""
        for place, array in enumerate(inputs):
            self._inputs[place] = array.ctypes.data
        for place, array in enumerate(outputs):
            self._outputs[place] = array.ctypes.data
        for place, size in enumerate(symbols):
            self._symbols[place] = size
        self._run_steps(*self._steps, None if nanoseconds is None else nanoseconds.ctypes.data)

    def _run_steps(self, first: int, last: int, nanoseconds: int | None) -> None:
        failed = self._library.graphc_steps(self._frame_at, first, last, nanoseconds)
        if failed:
            raise GraphcError(f"step '{self._names[failed - 1]}' failed")


def _load(code: memoryview) -> tuple[ctypes.CDLL, int]:
    if not hasattr(os, "memfd_create"):
        raise TargetError("compiled models run on Linux")
    # The descriptor stays open while the library is loaded: the dynamic linker takes a path that it has seen for the
    # library that it had, and a closed descriptor's number, thus its path, comes again.
    fd = os.memfd_create("graphc")
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(code)
        return ctypes.CDLL(f"/proc/self/fd/{fd}"), fd
    except OSError as error:
        os.close(fd)
        raise TargetError(f"this system cannot load the artifact's code: {error}") from None


def _unload(library: ctypes.CDLL, fd: int, workers: list[threading.Thread]) -> None:
    library.graphc_pool_stop()
    for worker in workers:
        worker.join()
    ctypes.CDLL(None).dlclose(ctypes.c_void_p(library._handle))
    os.close(fd)


def _check(library: ctypes.CDLL, program: _Program, weights_bytes: int, num_steps: int) -> None:
    if program.abi != _ABI:
        raise ArtifactError(f"artifact has ABI {program.abi}, this runtime {_ABI}: compile the model again")
    if (program.weights_bytes, program.num_steps) != (weights_bytes, num_steps):
        raise ArtifactError("artifact is damaged: code, weights and plan do not belong together")
    getauxval = ctypes.CDLL(None).getauxval
    getauxval.argtypes, getauxval.restype = [ctypes.c_ulong], ctypes.c_ulong
    has_feature = library.graphc_has_feature
    has_feature.argtypes = [ctypes.c_char_p, ctypes.c_uint64, ctypes.c_uint64]
    missing = []
    for feature in program.features:
        if feature is None:
            break
        name = feature.decode()
        if name not in EMULATED_FEATURES and not has_feature(feature, getauxval(_AT_HWCAP), getauxval(_AT_HWCAP2)):
            missing.append(name)
    if missing:
        raise TargetError(f"this CPU lacks features that the artifact was compiled for: {' '.join(missing)}")


def _allocate(size: int) -> Bytes:
    """`size` uninitialized bytes, 64-byte aligned."""
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size]


def _aligned(data: memoryview) -> Bytes:
    """`data` as it is where it is 64-byte aligned (a mapped file), else a copy."""
    array = np.frombuffer(data, np.uint8)
    if array.ctypes.data % _ALIGNMENT == 0:
        return array
    copy = _allocate(array.size)
    copy[:] = array
    return copy
