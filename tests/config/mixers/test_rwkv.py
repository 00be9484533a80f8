"""RWKV's fields: ranks that follow from the width, and what is refused."""

import pytest

from moe_hf import ConfigError, GPT2WithMoEConfig, RWKVWithMoEConfig


def test_ranks_grow_with_the_width() -> None:
    config = RWKVWithMoEConfig(hidden_size=1024, num_attention_heads=16)
    assert [config.rwkv_rank(what) for what in ("decay", "rate", "value", "gate")] == [64, 64, 64, 160]
    assert RWKVWithMoEConfig(rwkv_gate_rank=24).rwkv_rank("gate") == 24


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"rwkv_version": 6}, "rwkv_version=6 is not allowed; it must be 7 or 4"),
        ({"rwkv_inner_width": 0}, "rwkv_inner_width=0 is not allowed"),
        ({"rwkv_decay_rank": 0}, "rwkv_decay_rank=0 is not allowed"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        RWKVWithMoEConfig(**fields)


def test_other_families_are_not_asked() -> None:
    assert GPT2WithMoEConfig(hidden_size=30, num_attention_heads=3).rwkv_version == 7
