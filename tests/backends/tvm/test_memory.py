"""The memory plan: no two tensors that live at one time share a byte."""

from hypothesis import given
from hypothesis import strategies as st

from graphc.backends.tvm.memory import ALIGNMENT, Lifetime, aligned, pack, place

lifetimes = st.builds(
    lambda size, first, length: Lifetime(size, first, first + length),
    st.integers(0, 5000), st.integers(0, 30), st.integers(0, 10),
)  # fmt: skip


@given(st.lists(lifetimes, max_size=40))
def test_live_tensors_never_overlap(items):
    offsets, total = place(items)
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    for i, a in enumerate(items):
        assert offsets[i] + a.bytes <= total
        for j, b in enumerate(items[:i]):
            together = a.first <= b.last and b.first <= a.last
            apart = offsets[i] + a.bytes <= offsets[j] or offsets[j] + b.bytes <= offsets[i]
            assert apart or not together


def test_tensors_that_never_meet_share_memory():
    chain = [Lifetime(1000, step, step + 1) for step in range(20)]
    assert place(chain)[1] == 2 * aligned(1000)


def test_the_tightest_gap_is_taken():
    long, small = Lifetime(640, 0, 9), Lifetime(64, 5, 9)
    passing = Lifetime(128, 0, 3)
    offsets, total = place([long, passing, small])
    assert (offsets[2], total) == (640, 768)


def test_packing_lays_tensors_side_by_side():
    assert pack([1, 64, 65, 0]) == ([0, 64, 128, 256], 256)
