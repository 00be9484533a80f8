"""The cache of MegaByte: its rows stand at different places of their patch."""

import pytest
import torch
from transformers import DynamicCache

from moe_hf.base.errors import ConfigError
from moe_hf.layers.caches.megabyte import MegaByteCache, real_bytes
from moe_hf.layers.caches.states import detach_states
from tests.models.megabyte.tiny import CLOSE, PADS, B, S, tiny


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(3, 61, (B, S), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def mask() -> torch.Tensor:
    return (torch.arange(S) >= torch.tensor(PADS)[:, None]).long()


def test_a_cache_can_be_repeated_chosen_and_emptied_at_uneven_places(ids, mask) -> None:
    model = tiny()
    longer = torch.cat([mask, torch.ones(B, 2, dtype=torch.long)], dim=1)
    rows = torch.tensor([2, 0, 1])
    with torch.no_grad():
        cache = model(ids, attention_mask=mask).past_key_values
        expected = model(ids[:, :1], attention_mask=longer[:, :-1], past_key_values=cache).logits
        cache = model(ids, attention_mask=mask).past_key_values
        cache.batch_repeat_interleave(2)
        assert cache.batch_size == 2 * B
        cache.batch_select_indices(torch.tensor([4, 0, 3]))
        out = model(ids[rows, :1], attention_mask=longer[rows, :-1], past_key_values=cache).logits
        torch.testing.assert_close(out, expected[rows], **CLOSE)
        cache.reset()
        assert cache.get_seq_length() == 0
        again = model(ids, attention_mask=mask, past_key_values=cache).logits
        torch.testing.assert_close(again, model(ids, attention_mask=mask).logits, **CLOSE)


def test_a_detached_cache_carries_no_gradient(ids) -> None:
    model = tiny()
    cache = model(ids[:, :5], use_cache=True).past_key_values
    detach_states(cache)
    model(ids[:, 5:6], past_key_values=cache, use_cache=True).logits.sum().backward()
    # Patches were read by the first call alone.
    assert model.model.patching.start.grad is None
    assert model.model.to_local.weight.grad is None


def test_bytes_that_are_all_real_need_no_mask() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    assert real_bytes(None, 3) is None
    assert real_bytes(mask, 2) is None
    assert real_bytes(mask, 3).tolist() == [[False, True, True], [True, True, True]]


def test_it_cannot_be_cut_back() -> None:
    with pytest.raises(ConfigError, match="cannot be cut back"):
        MegaByteCache(DynamicCache()).crop(-1)
