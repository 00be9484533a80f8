"""Attention's fields: what follows from others, and what is refused."""

from typing import Any

import pytest

from moe_hf import ConfigError, GPT2WithMoEConfig, LlamaWithMoEConfig, MegaByteWithMoEConfig

SHAPE: dict[str, Any] = {"hidden_size": 36, "num_attention_heads": 6, "num_hidden_layers": 4}


def test_widths_follow_the_heads() -> None:
    plain = GPT2WithMoEConfig(**SHAPE)
    assert (plain.head_dim, plain.attention_width, plain.key_value_width) == (6, 36, 36)
    wide = LlamaWithMoEConfig(**SHAPE, num_key_value_heads=2, attention_head_dim=10)
    assert (wide.head_dim, wide.attention_width, wide.key_value_width) == (10, 60, 20)
    # Heads of a given width need not fill that of the model.
    assert LlamaWithMoEConfig(**{**SHAPE, "hidden_size": 37}, head_dim=4).attention_width == 24


def test_the_output_has_a_bias_where_the_rest_has_one_unless_told_otherwise() -> None:
    assert GPT2WithMoEConfig(**SHAPE).attention_output_bias is True
    assert LlamaWithMoEConfig(**SHAPE).attention_output_bias is False
    assert LlamaWithMoEConfig(**SHAPE, attention_bias=True, attention_output_bias=False).attention_output_bias is False


def test_windows_are_those_of_the_named_layers() -> None:
    config = LlamaWithMoEConfig(**SHAPE, sliding_window=5, sliding_window_layers=[1, 3])
    assert [config.window_of_layer(i) for i in range(4)] == [None, 5, None, 5]
    assert config.layer_types == ["full_attention", "sliding_attention"] * 2
    hybrid = LlamaWithMoEConfig(**SHAPE, sliding_window=5, mixer="hyena,attention")
    assert hybrid.layer_types == ["history", "sliding_attention"] * 2
    hybrid.sliding_window = None
    assert hybrid.layer_types == ["history", "full_attention"] * 2


def test_nothing_is_written_where_nothing_is_scaled() -> None:
    config = GPT2WithMoEConfig(**SHAPE, position_embedding_type="rotary")
    assert config.rope_parameters is None
    assert config.to_dict()["rope_parameters"] is None


def test_the_words_of_older_files_are_taken() -> None:
    config = LlamaWithMoEConfig(**SHAPE, rope_theta=7.0, rope_scaling={"type": "linear", "factor": 3.0})
    assert config.rope_parameters == {"rope_type": "linear", "factor": 3.0}
    assert config.rope_theta == 7.0


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"num_key_value_heads": 4}, "num_key_value_heads=4 is not allowed; it must be a divisor of num_attention_h"),
        ({"num_key_value_heads": 0}, "num_key_value_heads=0"),
        ({"attention_head_dim": 5}, "attention_head_dim=5 is not allowed; it must be even where positions are rotary"),
        ({"attention_head_dim": -2}, "attention_head_dim=-2"),
        ({"attention_qk_norm": "rows"}, "attention_qk_norm='rows' is not allowed; it must be one of none, head, width"),
        ({"sliding_window": 0}, "sliding_window=0"),
        (
            {"sliding_window": 4, "mixer_short_conv": 3},
            "sliding_window=4 is not allowed; it must be None with mixer_sh",
        ),
        ({"sliding_window": 4, "sliding_window_layers": [4]}, r"sliding_window_layers=\[4\] .*indices of layers in"),
        ({"rotary_layers": [0, 7]}, r"rotary_layers=\[0, 7\] is not allowed; it must be None or indices of layers in"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_parameters=.*rope_type among default, linear"),
        ({"rope_parameters": {"rope_type": "yarn"}}, 'complete: rope_type="yarn" needs factor, original_max'),
        ({"rope_parameters": {"rope_type": "linear", "factor": 0}}, "number > 0 and <= 1e.06 as factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "two"}}, "as factor"),
        (
            {
                "rope_parameters": {
                    **{"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0, 1.0, 1.0]},
                    "original_max_position_embeddings": 8,
                }
            },
            "a list of 3 positive numbers as long_factor",
        ),
        ({"rope_theta": 0}, "rope_theta=0"),
    ],
)
def test_what_is_out_of_range_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        LlamaWithMoEConfig(**{**SHAPE, **fields})


def test_megabyte_shares_keys_in_the_decoder_that_is_told_so_and_keeps_all_patches() -> None:
    shape = {"hidden_size": 48, "num_attention_heads": 4, "patch_size": 4}
    config = MegaByteWithMoEConfig(**shape, num_key_value_heads=2)
    assert (config.global_config.num_key_value_heads, config.local_config.num_key_value_heads) == (2, 2)
    assert config.local_config.stored("num_key_value_heads") is None
    with pytest.raises(ConfigError, match="sliding_window=4 is not allowed; it must be None: a MegaByteCache"):
        MegaByteWithMoEConfig(**shape, sliding_window=4)
