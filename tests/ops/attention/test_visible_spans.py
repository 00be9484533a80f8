"""Spans say of a mask which documents it holds, and refuse masks that they cannot describe."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.attention import visible_spans
from moe_hf.ops.attention.visible_spans import documents, spans_of_mask


def causal(queries: int, keys: int) -> torch.Tensor:
    return torch.ones(1, 1, queries, keys, dtype=torch.bool).tril(keys - queries)


def found(mask: torch.Tensor) -> list[tuple[int, list[int], list[int], list[int]]]:
    return [
        (document.rows.start, *(part.tolist() for part in document[1:]))
        for document in documents(spans_of_mask(mask), mask.shape[2])
    ]


def test_a_causal_mask_is_one_document_of_all_rows() -> None:
    (document,) = documents(spans_of_mask(causal(3, 5).repeat(4, 1, 1, 1)), 3)
    assert document.rows == slice(0, 4)
    assert document.key_n.tolist() == [0, 1, 2, 3, 4]
    assert document.count_q.tolist() == [3, 4, 5]


@pytest.mark.parametrize("at_once", [256, 2])
def test_padding_and_packing_are_taken_apart(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visible_spans, "_QUERIES_AT_ONCE", at_once)
    mask = causal(6, 6).repeat(3, 1, 1, 1)
    mask[0, :, :, :2] = False
    mask[1, :, :, 3] = False
    mask[2, :, 4:, :4] = False
    wanted = [
        # Left padding: queries there are in no document.
        (0, [2, 3, 4, 5], [2, 3, 4, 5], [1, 2, 3, 4]),
        # A gap: the keys close up, and its query sees what stands before it.
        (1, [0, 1, 2, 3, 4, 5], [0, 1, 2, 4, 5], [1, 2, 3, 3, 4, 5]),
        (2, [0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3, 4]),
        (2, [4, 5], [4, 5], [1, 2]),
    ]
    assert found(mask) == wanted
    assert found(torch.where(mask, 0.0, torch.finfo(torch.float32).min)) == wanted


def test_room_behind_the_last_key_is_left_out() -> None:
    mask = torch.zeros(2, 1, 1, 9, dtype=torch.bool)
    mask[0, :, :, 1:4] = mask[1, :, :, :4] = True
    assert found(mask) == [(0, [0], [1, 2, 3], [3]), (1, [0], [0, 1, 2, 3], [4])]


def test_what_is_no_span_is_refused() -> None:
    hole = causal(4, 4)
    hole[..., 3, 1] = False
    with pytest.raises(ConfigError, match='use attn_implementation="topk_sparse"'):
        spans_of_mask(hole)
    with pytest.raises(ConfigError, match="the heads must share it"):
        spans_of_mask(causal(4, 4).repeat(1, 2, 1, 1))
