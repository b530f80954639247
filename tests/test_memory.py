"""Memory that is kept: pages are touched for the first time once, not with every value.

Counted in a process of its own: where one has run for long, how often pages are new also depends on what lies between.
"""

import ctypes
import json
import resource
import subprocess
import sys

import pytest

if not hasattr(ctypes.CDLL(None), "mallopt"):
    pytest.skip("the C library has no mallopt", allow_module_level=True)

PROGRAM = """
import json, resource, torch
from graphc.memory import kept_memory

def faults():
    "Of pages, while eight values of 64 MB come and go."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    "Pages of this process."
    return int(open("/proc/self/statm").read().split()[1])

found = {"before": faults()}
try:
    with kept_memory():
        with kept_memory():
            faults(), faults()  # the first few find their places
            found["inside"] = faults()
        found["after an inner end"] = faults()
        held = resident()
        raise ZeroDivisionError
except ZeroDivisionError:
    found["given back"] = held - resident()
print(json.dumps(found))
"""


def test_values_take_the_memory_of_those_before_them_until_the_outermost_end():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert max(found["inside"], found["after an inner end"]) < found["before"] / 4
    assert found["given back"] * resource.getpagesize() > 48 << 20
