"""The decomposition: exact at full ranks and for weights of low rank, better than its beginning, as small as asked."""

import pytest
import torch
from torch import nn

import graphc
from graphc.convolution_factors import decompose
from graphc.errors import PassError
from graphc.passes.tucker import Tucker
from graphc.pipeline import PassContext


def _composed(left, core, right):
    return torch.einsum("pqhw,op,cq->ochw", core, left, right)


def test_full_ranks_lose_nothing_and_columns_are_orthonormal():
    weight = torch.randn(6, 5, 3, 2)
    left, core, right = decompose(weight, (6, 5))
    torch.testing.assert_close(_composed(left, core, right), weight)
    torch.testing.assert_close(right.T @ right, torch.eye(5), atol=1e-5, rtol=0)


def test_a_weight_of_low_rank_is_found():
    weight = _composed(torch.randn(9, 3), torch.randn(3, 2, 3, 3), torch.randn(8, 2))
    torch.testing.assert_close(_composed(*decompose(weight, (3, 2))), weight, atol=1e-4, rtol=1e-4)


def test_iterations_do_not_lose_to_the_singular_vectors_alone():
    weight = torch.randn(12, 10, 3, 3)
    left = torch.linalg.svd(weight.flatten(1))[0][:, :4]
    right = torch.linalg.svd(weight.transpose(0, 1).flatten(1))[0][:, :4]
    core = torch.einsum("ochw,op,cq->pqhw", weight, left, right)
    begun = (_composed(left, core, right) - weight).square().sum()
    assert (_composed(*decompose(weight, (4, 4))) - weight).square().sum() < begun


@pytest.mark.parametrize("ratio", [2, 4])
def test_the_ratio_is_kept(ratio):
    graph = graphc.trace(nn.Conv2d(32, 48, 3, bias=False).eval(), (torch.randn(1, 32, 5, 5),))
    result = Tucker(ratio=ratio).run(graph, PassContext())
    size = sum(tensor.numel() for tensor in result.weights.values())
    assert 0.85 * 32 * 48 * 9 / ratio < size <= 32 * 48 * 9 / ratio
    assert graphc.dump(Tucker(ratio=ratio).run(graph, PassContext())) == graphc.dump(result)


def test_options_out_of_range_are_said():
    graph = graphc.trace(nn.Conv2d(3, 4, 3).eval(), (torch.randn(1, 3, 5, 5),))
    for wrong in (Tucker(energy=0.0), Tucker(ratio=0.5)):
        with pytest.raises(PassError, match="legal: 0 < energy <= 1, ratio >= 1"):
            wrong.run(graph, PassContext())
