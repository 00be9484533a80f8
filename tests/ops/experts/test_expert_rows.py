"""Slots sorted by expert, cut into chunks and groups, and put back."""

import torch

from moe_hf.ops.experts.expert_rows import Chunk, combine_rows, group_chunks, room_for_rows, sort_rows, spread_slots

# Three experts, 3 marks a slot to skip; expert 1 has no slot.
EXPERT = torch.tensor([[2, 0], [0, 3], [2, 2]])


def test_slots_come_in_the_order_of_their_experts_and_in_chunks_of_one_expert() -> None:
    rows = sort_rows(EXPERT, 3, rows_per_chunk=2)
    assert rows.slot_N.tolist() == [1, 2, 0, 4, 5]
    assert rows.chunks == [Chunk(0, 0, 2, True), Chunk(2, 2, 4, True), Chunk(2, 4, 5, False)]
    assert rows.unused == [1]


def test_neighbouring_chunks_share_a_group_up_to_its_size() -> None:
    chunks = sort_rows(EXPERT, 3, rows_per_chunk=2).chunks
    assert group_chunks(chunks, 0) == [[chunk] for chunk in chunks]
    assert group_chunks(chunks, 4) == [chunks[:2], chunks[2:]]
    assert group_chunks(chunks, 5) == [chunks]


def test_rows_are_weighted_and_added_up_at_their_tokens_and_skipped_slots_count_nothing() -> None:
    weight = torch.tensor([[1.0, 2], [3, torch.nan], [5, 6]])
    slot = sort_rows(EXPERT, 3, 9).slot_N
    y = room_for_rows(slot, weight, torch.empty(3, 2))
    assert y.shape == (6, 2)
    y[:5] = torch.arange(1.0, 6)[:, None]
    assert combine_rows(y, slot, weight)[:, 0].tolist() == [1 * 3 + 2 * 1, 3 * 2, 5 * 4 + 6 * 5]


def test_numbers_of_rows_go_back_to_their_slots() -> None:
    slot = sort_rows(EXPERT, 3, 9).slot_N
    found = spread_slots(torch.arange(1.0, 6), slot, torch.empty(3, 2))
    assert found.tolist() == [[3, 1], [2, 0], [4, 5]]
