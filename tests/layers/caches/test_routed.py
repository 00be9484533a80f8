"""The cache that counts what each sequence asked of each expert."""

import pytest
import torch
from transformers import DynamicCache

from moe_hf.base.errors import ConfigError
from moe_hf.layers.caches.routed import RoutedCache


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_cached_and_uncached_generation_agree_while_experts_are_full(tiny_model, token_ids, strategy) -> None:
    model = tiny_model(router_eval_capacity_factor=0.2)
    mask = torch.ones_like(token_ids)
    mask[1, :3] = 0
    answers = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        given = {"max_new_tokens": 20, "do_sample": False, "use_cache": use_cache, **strategy}
        answers.append(model.generate(token_ids, attention_mask=mask, **given))
    assert answers[0].equal(answers[1])
    whole = answers[0][:1]
    recorded = model(whole, output_router_logits=True)
    assert max(recorded.router_dropped) > 0.1


def test_logits_of_a_text_in_pieces_are_those_of_the_whole(tiny_model) -> None:
    model = tiny_model(router_eval_capacity_factor=0.2)
    ids = torch.randint(3, 61, (2, 20), generator=torch.Generator().manual_seed(5))
    whole = model(ids).logits
    cache, pieces = None, []
    for piece in ids.split([9, 1, 6, 4], dim=1):
        out = model(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        pieces.append(out.logits)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)
    unlimited = tiny_model()(ids).logits
    assert not torch.allclose(unlimited, whole, atol=1e-2)


def test_a_cache_that_cannot_count_is_refused(tiny_model, token_ids) -> None:
    model = tiny_model(router_eval_capacity_factor=1.0)
    with pytest.raises(ConfigError, match="needs a cache that counts, got DynamicCache"):
        model(token_ids, past_key_values=DynamicCache(config=model.config))
    with pytest.raises(ConfigError, match="needs a cache that counts, got StaticCache"):
        model.generate(token_ids, max_new_tokens=3, cache_implementation="static")


def test_counts_follow_the_rows_and_are_emptied_with_them() -> None:
    cache = RoutedCache()
    cache.offered[1] = torch.tensor([[1, 2], [3, 4]])
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 0, 0, 1]))
    cache.batch_select_indices(torch.tensor([0, 1]))
    assert cache.offered[1].tolist() == [[3, 4], [1, 2]]
    with pytest.raises(ConfigError, match="cannot be cropped"):
        cache.crop(-1)
    cache.reset()
    assert cache.offered == {}
