"""The k largest scores of each row, and products with the weights that they make, sparse or dense."""

import pytest
import torch

from moe_hf.ops.attention import topk_selection
from moe_hf.ops.attention.topk_selection import (
    add_weighted_rows,
    keep_largest,
    kept_products,
    largest,
    products,
    weighted_keys,
)
from tests.ops.attention.cases import normal


@pytest.mark.parametrize("width", [5, 64, 300, 1029])
@pytest.mark.parametrize("k", [1, 5])
def test_largest_is_topk(width: int, k: int) -> None:
    score = normal(50, width)
    values, index = largest(score, k)
    assert values.equal(score.topk(k).values)
    assert score.gather(1, index).equal(values)


def test_a_fraction_counts_the_keys_that_a_row_sees() -> None:
    score = normal(3, 30)
    score[1, 10:] = -torch.inf
    score[2, 1:] = -torch.inf
    kept, _ = keep_largest(score, 0.1)
    assert (kept > -torch.inf).sum(dim=-1).tolist() == [3, 1, 1]


@pytest.mark.parametrize("queries", [1, 16, 17])
def test_both_orders_of_a_product_give_the_same(queries: int) -> None:
    query, key = normal(2, queries, 5), normal(2, 9, 5, seed=1)
    found = products(query, key)
    assert found.is_contiguous()
    torch.testing.assert_close(found, torch.einsum("zrc,znc->zrn", query, key))


def test_sparse_weights_are_multiplied_as_dense_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk_selection, "_PAIRS_AT_ONCE", 10)
    heads, rows, keys = 2, 6, 40
    x, row = normal(heads, keys, 3), normal(rows, 3, seed=1)
    weight, index = keep_largest(normal(rows, keys, seed=2), 4)
    assert index is not None
    dense = torch.zeros(rows, keys, dtype=weight.dtype).scatter(1, index, weight)
    torch.testing.assert_close(weighted_keys(weight, index, x), weighted_keys(dense, None, x))
    torch.testing.assert_close(kept_products(row, index, x), kept_products(row, None, x).gather(1, index))
    sparse_sum, dense_sum = x.clone(), x.clone()
    add_weighted_rows(sparse_sum, weight, index, row)
    add_weighted_rows(dense_sum, dense, None, row)
    torch.testing.assert_close(sparse_sum, dense_sum)
    assert not torch.equal(sparse_sum, x)
