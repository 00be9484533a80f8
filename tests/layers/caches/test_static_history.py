"""The history with room that stays in its place."""

import pytest
import torch
from transformers import StaticCache

from moe_hf.base.errors import ConfigError
from moe_hf.layers.caches.static_history import StaticHistoryLayer
from tests.layers.caches.tiny_hyena import CLOSE, make, run


def test_padding_packing_and_pieces(model, ids) -> None:
    mask = torch.ones(3, 30, dtype=torch.long)
    mask[0, :11] = mask[1, 17:] = mask[2, 5:9] = 0
    cache = StaticCache(model.config, max_cache_len=60)
    run(model, ids[:, :30] * mask, cache, attention_mask=mask)
    pieces = [run(model, ids[:, 30:31], cache), run(model, ids[:, 31:40], cache), run(model, ids[:, 40:41], cache)]
    for row in range(3):
        alone = torch.cat([ids[row, :30][mask[row].bool()], ids[row, 30:41]])[None]
        torch.testing.assert_close(torch.cat(pieces, dim=1)[row], run(model, alone, None)[0, -11:], **CLOSE)


def test_the_last_document_alone_stays(model, ids) -> None:
    cache = StaticCache(model.config, max_cache_len=40)
    positions = torch.cat([torch.arange(12), torch.arange(18)])[None]
    run(model, ids[:1, :30], cache, position_ids=positions)
    out = run(model, ids[:1, 30:31], cache)
    torch.testing.assert_close(out, run(model, ids[:1, 12:31], None)[:, -1:], **CLOSE)


def test_more_tokens_than_room_are_an_error(model, ids) -> None:
    cache = StaticCache(model.config, max_cache_len=20)
    run(model, ids[:, :20], cache)
    with pytest.raises(ConfigError, match="21 tokens does not fit into a static cache with max_cache_len=20"):
        run(model, ids[:, 20:21], cache)


def test_a_compiled_step_gives_the_same(ids) -> None:
    torch.compiler.reset()
    model = make(hyena_order=3, num_hidden_layers=1, mlp_layer_types=["dense"])
    cache = StaticCache(model.config, max_cache_len=40)
    run(model, ids[:, :20], cache)
    step = torch.compile(model.model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        out = [step(ids[:, i : i + 1], past_key_values=cache, use_cache=True) for i in range(20, 24)]
    logits = model.lm_head(torch.cat([o.last_hidden_state for o in out], dim=1))
    torch.testing.assert_close(logits, run(model, ids[:, :24], None)[:, 20:], **CLOSE)
    layer = cache.layers[0]
    assert isinstance(layer, StaticHistoryLayer)
    assert layer.read("count_0").tolist() == [24] * 3
