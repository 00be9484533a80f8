"""Retention's fields: widths divide among the heads where a layer retains, and wrong values are named."""

from typing import Any

import pytest

from moe_hf import ConfigError, GPT2WithMoEConfig, RetNetWithMoEConfig


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"retention_rotation": "quarter"}, "one of half, interleaved, none"),
        ({"retention_norm": "group"}, "one of rms, layer"),
        ({"retention_form": "serial"}, "one of chunkwise, parallel, recurrent"),
        ({"retention_num_heads": 0}, "integer >= 1"),
        ({"retention_rope_theta": 0}, "a finite number > 0"),
        ({"retention_num_heads": 5}, "retention_expand_k=1.0 .* multiple of 10 with 5 heads"),
        ({"retention_expand_k": 0.33}, "retention_expand_k=0.33 "),
        ({"retention_expand_v": -1}, "retention_expand_v=-1 "),
        ({"hidden_size": 6, "retention_expand_k": 1.5, "num_attention_heads": 3}, "multiple of 6"),
    ],
)
def test_wrong_values_are_named(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        RetNetWithMoEConfig(**fields)


def test_odd_heads_need_no_pairs_where_nothing_is_turned() -> None:
    fields = {"hidden_size": 6, "retention_expand_k": 1.5, "num_attention_heads": 3, "retention_rotation": "none"}
    assert RetNetWithMoEConfig(**fields).retention_key_width == 9


def test_other_families_widths_are_no_concern_of_retention() -> None:
    assert GPT2WithMoEConfig(hidden_size=33, num_attention_heads=3).retention_num_heads is None
    with pytest.raises(ConfigError, match="retention_expand_k"):
        GPT2WithMoEConfig(hidden_size=33, num_attention_heads=3, mixer="retention,attention")
