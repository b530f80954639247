"""Large values that come and go, without asking the system for their memory each time.

glibc maps every block above 32 MB anew and gives it back when it is freed; touching its pages for the first time then
takes longer than most operators. Encoding ResNet-18 in all formats and learning its roundings took up to twice as long.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of mallopt(3)
_LARGEST = (1 << 31) - 1
# What glibc's own adaptation ends at in a process that once freed a large block.
_USUAL = {_MMAP_MAX: 65_536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20}

_lock = Lock()
_inside = 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Inside, what is freed stays with the process; at the outermost end it is given back. Does nothing where the C
    library has no mallopt.

    >>> with kept_memory():
    ...     learn()
    """
    global _inside
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        yield
        return
    with _lock:
        _inside += 1
        if _inside == 1:
            library.mallopt(_MMAP_MAX, 0)
            library.mallopt(_TRIM_THRESHOLD, _LARGEST)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                for parameter, value in _USUAL.items():
                    library.mallopt(parameter, value)
                library.malloc_trim(0)
