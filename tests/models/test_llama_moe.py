"""The Llama family has the shape of Llama's decoder, and says where a window cannot be kept."""

import pytest
import torch

from moe_hf import ConfigError, LlamaWithMoE, LlamaWithMoEConfig
from tests.models.families import tiny_family


def test_a_decoder_of_llama_s_shape_is_built() -> None:
    config = LlamaWithMoEConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, vocab_size=11, num_experts=2
    )
    with torch.device("meta"):
        names = dict(LlamaWithMoE(config).named_parameters())
    assert names["model.layers.0.mixer.q_proj.weight"].shape == (48, 48)
    assert names["model.layers.0.mixer.k_proj.weight"].shape == (16, 48)
    assert names["model.layers.1.mlp.gate_proj.weight"].shape == (256, 48)
    assert "lm_head.weight" in names
    assert not [name for name in names if name.endswith("bias")]


def test_padding_between_real_tokens_is_refused_where_it_would_take_places_in_a_window() -> None:
    model, ids = tiny_family("llama-window"), torch.arange(3, 15).view(2, 6)
    mask = torch.ones_like(ids)
    mask[1, 2:4] = 0
    with pytest.raises(ConfigError, match=r"attention_mask of shape \(2, 6\) with padding between.*sliding_window=5"):
        model(ids, attention_mask=mask)
    mask[1, 2:4], mask[0, :2], mask[1, 4:] = 1, 0, 0
    assert model(ids, attention_mask=mask).logits.isfinite().all()
    whole = tiny_family("llama")
    mask[1, 2:4], mask[1, 4:] = 0, 1
    assert whole(ids, attention_mask=mask).logits.isfinite().all()


def test_a_window_that_is_set_later_is_kept_by_masks_layers_and_caches() -> None:
    built = tiny_family("llama-window")
    late = tiny_family("llama-window", sliding_window=None, sliding_window_layers=None)
    built.load_state_dict(late.state_dict())
    late.config.sliding_window, late.config.sliding_window_layers = 5, built.config.sliding_window_layers
    ids = torch.arange(3, 23)[None]
    first = late(ids[:, :10], use_cache=True)
    second = late(ids[:, 10:], past_key_values=first.past_key_values)
    expected = built(ids).logits
    torch.testing.assert_close(late(ids).logits, expected)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], dim=1), expected)


def test_assisted_generation_is_refused_by_windows_alone() -> None:
    assert tiny_family("llama-window")._is_stateful
    assert not tiny_family("llama")._is_stateful
