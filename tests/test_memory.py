"""Memory that is kept: pages are touched for the first time once, not with every value."""

import ctypes
import resource

import pytest
import torch

from graphc.memory import kept_memory

if not hasattr(ctypes.CDLL(None), "mallopt"):
    pytest.skip("the C library has no mallopt", allow_module_level=True)

VALUES, FLOATS = 8, 16 << 20


def faults() -> int:
    """Of pages, while values of 64 MB come and go."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(VALUES):
        torch.ones(FLOATS)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_values_take_the_memory_of_those_before_them():
    with kept_memory(), kept_memory():
        torch.ones(FLOATS)
        kept = faults()
    given_back = faults()
    assert kept < given_back / 4


def test_an_inner_end_keeps_it_and_an_error_gives_it_back():
    with pytest.raises(ZeroDivisionError), kept_memory():
        with kept_memory():
            torch.ones(FLOATS)
        inside = faults()
        raise ZeroDivisionError
    assert inside < faults() / 4
