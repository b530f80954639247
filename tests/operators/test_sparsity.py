"""Dense weights from the elements and blocks that are kept."""

import torch

ops = torch.ops.graphc


def test_expand_2_4():
    values = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]])
    positions = torch.tensor([[0, 3, 2, 1], [1, 2, 0, 1]], dtype=torch.uint8)
    assert ops.expand_2_4(values, positions).tolist() == [[1, 0, 0, 2, 0, 4, 3, 0], [0, 5, 6, 0, 7, 8, 0, 0]]


def test_expand_blocks():
    values = torch.arange(1.0, 13.0).reshape(3, 2, 2)
    mask = torch.tensor([[0, 1, 0], [1, 0, 1]], dtype=torch.uint8)
    assert ops.expand_blocks(values, mask).tolist() == [
        [0, 0, 1, 2, 0, 0],
        [0, 0, 3, 4, 0, 0],
        [5, 6, 0, 0, 9, 10],
        [7, 8, 0, 0, 11, 12],
    ]


def test_expand_gaps():
    values, gaps = torch.tensor([1.0, 0.0, 2.0, 3.0]), torch.tensor([0, 1, 0, 3], dtype=torch.uint8)
    assert ops.expand_gaps(values, gaps, 2, 4).tolist() == [[1, 0, 0, 2], [0, 0, 0, 3]]
