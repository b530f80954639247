"""Look-up of codewords, tables of partial products and sums of their entries, against loops over elements."""

import pytest
import torch

ops = torch.ops.graphc
INDICES = torch.randint(0, 5, (7, 3), dtype=torch.uint8)
CODEBOOK = torch.randn(5, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_lookup(dtype):
    found = ops.lookup(INDICES, CODEBOOK.to(dtype))
    assert found.dtype == torch.float32
    for n in range(7):
        for j in range(3):
            assert torch.equal(found[n, 4 * j : 4 * j + 4], CODEBOOK.to(dtype)[int(INDICES[n, j])].float())


def test_runs_of_pieces_have_codebooks_of_their_own():
    codebooks, indices = torch.randn(3, 5, 4), torch.randint(0, 5, (7, 6), dtype=torch.uint8)
    x = torch.randn(2, 24)
    words, tables = ops.lookup(indices, codebooks), ops.partial_products(x, codebooks)
    for j in range(6):
        own = codebooks[j // 2]
        assert torch.equal(words[:, 4 * j : 4 * j + 4], own[indices[:, j].long()])
        torch.testing.assert_close(tables[:, j], x[:, 4 * j : 4 * j + 4] @ own.t())


def test_partial_products():
    x = torch.randn(2, 3, 12)
    found = ops.partial_products(x, CODEBOOK)
    assert found.shape == (2, 3, 3, 5)
    for j in range(3):
        torch.testing.assert_close(found[..., j, :], x[..., 4 * j : 4 * j + 4] @ CODEBOOK.t())


@pytest.mark.parametrize("outer", [(), (2,), (2, 3)])
def test_gather_sum(outer):
    tables = torch.randn(*outer, 3, 5)
    found = ops.gather_sum(tables, INDICES)
    assert found.shape == (*outer, 7)
    for n in range(7):
        expected = sum(tables[..., j, int(INDICES[n, j])] for j in range(3))
        torch.testing.assert_close(found[..., n], expected)


def test_a_product_by_tables_is_the_product():
    x = torch.randn(3, 12)
    by_tables = ops.gather_sum(ops.partial_products(x, CODEBOOK), INDICES)
    torch.testing.assert_close(by_tables, x @ ops.lookup(INDICES, CODEBOOK).t())


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.partial_products(X, CODEBOOK.to("meta")),
        lambda: ops.partial_products(X[:, :8], torch.zeros(4, 5, 4, device="meta")),
        lambda: ops.lookup(INDICES.to("meta"), torch.zeros(2, 5, 4, device="meta")),
        lambda: ops.gather_sum(X, INDICES.to("meta")),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call):
    with pytest.raises(Exception, match=r"no whole number|tables for"):
        call()


X = torch.zeros(4, 10, device="meta")
