"""The passes of top-k attention go through their parts in bounded memory, and see only what a part can see."""

import pytest
import torch

from moe_hf.ops.attention import topk_passes, topk_selection
from moe_hf.ops.attention.contract import Inputs
from moe_hf.ops.attention.topk_passes import TopkOptions, backward_pass, forward_pass, parts, weights_of_part
from tests.ops.attention.cases import inputs
from tests.ops.largest import LargestTensor


def given(queries: int, keys: int, seed: torch.Tensor | None = None, mask: torch.Tensor | None = None) -> Inputs:
    query, key, value = (x.detach() for x in inputs(2, 2, 2, queries, keys, torch.float32))
    return Inputs(query, key, value, mask, None, seed)


def options(dropout: float = 0.0, window: int = 0) -> TopkOptions:
    return TopkOptions(8.0, True, 0, window, 0.4, 0.0, dropout)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_no_matrix_of_queries_by_keys_exists(direction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topk_passes, "_SCORES_AT_ONCE", 40_000)
    monkeypatch.setattr(topk_selection, "_PAIRS_AT_ONCE", 1_000)
    tensors = given(600, 600)
    with LargestTensor() as largest:
        if direction == "forward":
            forward_pass(tensors, options())
        else:
            backward_pass(torch.ones_like(tensors.value_BGNV), tensors, options())
    assert largest.numbers <= 40_000 < 600 * 600


def test_the_parts_hold_each_query_once_and_leave_out_keys_that_none_of_them_sees() -> None:
    mask = torch.ones(2, 1, 300, 300, dtype=torch.bool)
    mask[..., :5] = False
    found = list(parts(given(300, 300, mask=mask), options(window=20)))
    assert [n for part in found for n in range(part.queries.start, part.queries.stop)] == list(range(300))
    for part in found:
        first = max(5, part.queries.start - 19)
        assert (part.keys.start, part.keys.stop) == (first, part.queries.stop)


def test_the_weights_of_a_part_are_drawn_the_same_each_time_and_unlike_those_of_another() -> None:
    tensors = given(40, 40, seed=torch.tensor(3))
    (part,) = parts(tensors, options(0.5))
    first, again, other = (weights_of_part(tensors, options(0.5), part, number).dropped for number in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
