"""What the ops along a sequence share: keywords, padding, starts and segments."""

import pytest
import torch

from moe_hf.ops.sequence.contract import (
    Edges,
    Segments,
    call_of,
    compaction,
    without_padding,
    zero_padding,
)

MASK = torch.tensor([[0, 1, 0, 2], [1, 1, 1, 0]])
STARTS = torch.tensor([[True, True, False, False], [False, True, False, True]])


def test_padding_begins_no_document() -> None:
    assert call_of(mask_BS=MASK, starts_BS=STARTS).edges.starts_BS.tolist() == [
        [False, True, False, False],
        [False, True, False, False],
    ]
    assert call_of(starts_BS=STARTS).edges.starts_BS is STARTS


def test_a_call_without_keywords_is_of_real_tokens_and_gives_its_state() -> None:
    call = call_of()
    out, state = torch.zeros(1), torch.ones(1)
    assert call.initial_state is call.edges.mask_BS is call.edges.starts_BS is None
    assert call.result(out, state) == (out, state)
    assert call_of(output_final_state=False).result(out, state) == (out, None)


def test_a_keyword_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(TypeError, match="document_starts"):
        call_of(document_starts=STARTS)


def test_zeros_stand_at_padding_whatever_stood_there() -> None:
    wide, narrow = torch.full((2, 4, 3, 2), torch.nan), torch.ones(2, 4)
    zeroed, ones = zero_padding(MASK, wide, narrow)
    assert zeroed[MASK == 0].eq(0).all()
    assert zeroed[MASK != 0].isnan().all()
    assert torch.equal(ones, (MASK != 0).float())
    assert zero_padding(None, narrow) == (narrow,)


@pytest.mark.parametrize("length", [1, 3, 4, 11, 12, 13, 30])
def test_pieces_cover_a_sequence_in_whole_chunks_and_keep_to_their_limit(length: int) -> None:
    segments = Segments(chunk=4, segment=12)
    found = segments.of(length)
    assert [token for start, stop, _ in found for token in range(start, stop)] == list(range(length))
    assert all((stop - start) % chunk == 0 and stop - start <= 12 for start, stop, chunk in found)
    assert max(2, len(found)) <= segments.limit(length) <= len(found) + 1


def test_edges_are_cut_as_the_tokens_are() -> None:
    mask_BS, starts_BS = Edges(MASK).between(1, 3)
    assert torch.equal(mask_BS, MASK[:, 1:3])
    assert starts_BS is None


def test_real_tokens_come_first_and_go_back_to_their_places() -> None:
    x = torch.arange(8.0).view(2, 4)
    moved = compaction(MASK)
    assert moved.count_B.tolist() == [2, 3]
    assert moved.pack(x).tolist() == [[1, 3, 0, 2], [4, 5, 6, 7]]
    assert torch.equal(moved.unpack(moved.pack(x)), x)
    wide = x[..., None] * torch.ones(3)
    packed, starts, _ = without_padding(wide, Edges(MASK, STARTS))
    assert torch.equal(packed[..., 0], moved.pack(x))
    assert torch.equal(starts, moved.pack(STARTS))
    assert without_padding(x, Edges(None, STARTS)) == (x, STARTS, None)
