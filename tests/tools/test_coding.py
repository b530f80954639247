"""Entropy coding of a trained network's weights, beside what looks for repetitions."""

import pytest

from graphc.tools import coding


@pytest.mark.usefixtures("data")
@pytest.mark.parametrize("way", ["int8", "vector, 2 bits"])
def test_trained_weights_are_coded_in_about_the_bytes_of_zlib_or_fewer(way):
    """Noughts where nothing is read repeat in LeNet, which is to zlib's advantage."""
    row = coding.measure("lenet", way)
    assert row["coded"] < row["bytes"]
    assert row["coded"] < 1.02 * row["zlib"]
