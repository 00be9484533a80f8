"""The local model: it reads the places of one patch, and what it looks back at."""

import pytest
import torch

from tests.models.megabyte.tiny import CLOSE, B, P, S, tiny


@pytest.mark.parametrize("lookback", [0, 2])
def test_uneven_rows_never_keep_more_than_a_patch(lookback: int, ids, mask) -> None:
    model = tiny(local_lookback=lookback)
    cache = model(ids, attention_mask=mask, use_cache=True).past_key_values
    for extra in range(1, 3 * P):
        longer = torch.cat([mask, torch.ones(B, extra, dtype=torch.long)], dim=1)
        model(ids[:, :1], attention_mask=longer, past_key_values=cache, use_cache=True)
        assert cache.local_cache.get_seq_length() <= P + lookback
    # Each row's visible columns are its patch of start and those that it finished.
    assert cache.global_mask_BC.sum(1).tolist() == [1 + (int(n) + 3 * P - 1) // P for n in mask.sum(1)]


def test_the_last_byte_s_prediction_alone_is_the_same(ids, mask) -> None:
    model = tiny(output_router_logits=True)
    longer = torch.cat([mask, torch.ones(B, 5, dtype=torch.long)], dim=1)
    with torch.no_grad():
        for given in ({}, {"attention_mask": mask}, {"attention_mask": mask.flip(1)}):
            whole, last = (model(ids, **given, last_only=last_only) for last_only in (False, True))
            real = given.get("attention_mask", torch.ones_like(ids))[:, -1:].bool()[:, 0]
            torch.testing.assert_close(last.logits[real], whole.logits[real, -1:], **CLOSE)
            torch.testing.assert_close(last.router_logits[1][real], whole.router_logits[1].view(B, S, -1)[real, -1])
        # The state is all the same.
        caches = [model(ids, attention_mask=mask, last_only=last_only).past_key_values for last_only in (False, True)]
        one, other = (model(ids[:, :5], attention_mask=longer, past_key_values=cache).logits for cache in caches)
        torch.testing.assert_close(one, other, **CLOSE)
