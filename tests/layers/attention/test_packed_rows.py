"""Packed rows under a flash kernel: each document by itself, in a batch of several rows too."""

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, flash_attention_mask
from transformers.modeling_flash_attention_utils import _is_packed_sequence
from transformers.utils.generic import is_flash_attention_requested

from moe_hf.layers.mixers.attention import eager_attention

NAME = "flash_attention_by_bounds"
POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6], [3, 4, 0, 0, 1, 0, 1]])


def attention_by_bounds(module, query, key, value, attention_mask, scaling, cu_seq_lens_q=None, **kwargs):
    """What transformers does with a flash kernel: rows laid end to end and cut at the bounds, if there are any."""
    assert attention_mask is None
    batch, heads, length, width = query.shape
    bounds = range(0, batch * length + 1, length) if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    flat = [part.transpose(1, 2).reshape(1, -1, heads, width).transpose(1, 2) for part in (query, key, value)]
    parts = []
    for start, end in pairwise(bounds):
        causal = torch.full((end - start, end - start), float("-inf")).triu(1)
        parts.append(eager_attention(module, *(part[:, :, start:end] for part in flat), causal, scaling)[0])
    return torch.cat(parts, dim=1).reshape(batch, length, heads, width), None


@pytest.fixture
def by_bounds() -> Iterator[None]:
    AttentionInterface.register(NAME, attention_by_bounds)
    AttentionMaskInterface.register(NAME, flash_attention_mask)
    yield
    del AttentionInterface._global_mapping[NAME], AttentionMaskInterface._global_mapping[NAME]


@pytest.mark.usefixtures("by_bounds")
@pytest.mark.parametrize("taps", [0, 3])
def test_several_packed_rows_equal_the_reference(tiny_model, token_ids, taps: int) -> None:
    shape = {"mixer_short_conv": taps, "position_embedding_type": "rotary"}
    expected = tiny_model(attn_implementation="eager", **shape)(token_ids, position_ids=POSITIONS).logits
    model = tiny_model(attn_implementation="eager", **shape)
    model.config._attn_implementation = NAME
    assert is_flash_attention_requested(model.config)
    torch.testing.assert_close(model(token_ids, position_ids=POSITIONS).logits, expected)
    assert (model(token_ids).logits - expected).abs().max() > 1e-3


def test_transformers_itself_looks_for_documents_in_a_single_row_only() -> None:
    # When this fails, `document_bounds` is no longer needed.
    assert not _is_packed_sequence(POSITIONS, batch_size=3)
    assert _is_packed_sequence(POSITIONS[:1], batch_size=1)
