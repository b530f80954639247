"""The shape of register tiles."""

import pytest

from graphc.backends.tvm.templates.register_tile import tile_shape


@pytest.mark.parametrize(
    ("height", "width", "shape"),
    [
        (56, 56, (1, 14)),  # divides the width
        (14, 14, (1, 14)),
        (7, 7, (1, 7)),  # two rows of seven would compute an eighth row twice
        (6, 7, (2, 7)),
        (4, 4, (2, 4)),
        (1, 49, (1, 13)),  # four tiles whichever way: the smallest that do
        (1, 3, (1, 3)),
    ],
)
def test_tiles_cover_an_image_with_little_to_spare(height, width, shape):
    assert tile_shape(height, width, 14) == shape
