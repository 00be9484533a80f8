"""How long documents are after a call, and the last inputs that are kept."""

import pytest
import torch

from moe_hf.layers.caches.history import last_entries, reach_of
from moe_hf.layers.inputs import PLAIN, LayerInputs


def test_without_padding_and_documents_all_tokens_count() -> None:
    assert reach_of(3, 4, PLAIN) == (7, 7)
    longest, last_B = reach_of(torch.tensor([3, 5]), 4, PLAIN)
    assert (longest, last_B.tolist()) == (9, [7, 9])


def test_padding_does_not_count() -> None:
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]])
    longest, last_B = reach_of(2, 4, LayerInputs(padding_mask=mask))
    assert (longest, last_B.tolist()) == (5, [4, 5])


def test_each_document_counts_by_itself() -> None:
    starts = torch.tensor([[0, 0, 0, 1, 0], [0, 1, 0, 0, 1]]).bool()
    longest, last_B = reach_of(6, 5, LayerInputs(document_starts=starts))
    # The first document of a row goes on from before the call.
    assert (longest, last_B.tolist()) == (9, [2, 1])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 1, 1]])
    longest, last_B = reach_of(0, 5, LayerInputs(padding_mask=mask, document_starts=starts))
    assert (longest, last_B.tolist()) == (3, [1, 1])


@pytest.mark.parametrize(("count", "expected"), [(2, [3, 4]), (4, [1, 2, 3, 4]), (6, [0, 0, 1, 2, 3, 4]), (0, [])])
def test_the_last_entries_are_filled_up_with_zeros_in_front(count: int, expected: list[int]) -> None:
    x_BPC = torch.arange(1, 5)[None, :, None]
    assert last_entries(x_BPC, count)[0, :, 0].tolist() == expected
