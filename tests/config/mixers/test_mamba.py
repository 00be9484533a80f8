"""Mamba's fields: what follows from others, and what is refused."""

from typing import Any

import pytest

from moe_hf import ConfigError, GPT2WithMoEConfig, MambaWithMoEConfig


def test_sizes_follow_the_width_and_the_version() -> None:
    first = MambaWithMoEConfig(hidden_size=96, num_hidden_layers=2, mamba_version=1)
    second = MambaWithMoEConfig(hidden_size=96, num_hidden_layers=2, mamba_head_dim=32)
    assert (first.mamba_inner_width, first.mamba_state_width, first.mamba_rank) == (192, 16, 6)
    assert (second.mamba_inner_width, second.mamba_state_width, second.mamba_num_heads) == (192, 128, 6)


def test_heads_of_attention_need_not_be_named() -> None:
    assert MambaWithMoEConfig(hidden_size=256, mixer="mamba*3,attention").num_attention_heads == 4
    assert MambaWithMoEConfig(hidden_size=96, mamba_head_dim=32).num_attention_heads == 1


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"mamba_version": 3}, "mamba_version=3 is not allowed; it must be 1 or 2"),
        ({"mamba_expand": 0}, "mamba_expand=0"),
        ({"mamba_state_size": 0}, "mamba_state_size=0"),
        ({"mamba_conv_kernel": 0}, "mamba_conv_kernel=0"),
        ({"mamba_head_dim": 100}, "mamba_head_dim=100 is not allowed; it must be a divisor of 1536 channels"),
        ({"mamba_num_groups": 5}, "mamba_num_groups=5 is not allowed; it must be a divisor of 24 heads"),
        ({"mamba_time_step_limit": [0.5]}, "mamba_time_step_limit"),
        ({"mamba_time_step_limit": [0.5, 0.1]}, "mamba_time_step_limit"),
        ({"mamba_time_step_min": 0.5}, "mamba_time_step_min=0.5 is not allowed; it must be at most 0.1"),
        ({"mamba_bcdt_norm_eps": 0.0}, "mamba_bcdt_norm_eps"),
    ],
)
def test_what_is_out_of_range_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        MambaWithMoEConfig(**fields)


def test_widths_that_only_a_mamba_would_mind_are_fine_elsewhere() -> None:
    assert GPT2WithMoEConfig(hidden_size=36, num_attention_heads=4).hidden_size == 36


def test_an_open_limit_survives_saving(tmp_path) -> None:
    config = MambaWithMoEConfig(mamba_time_step_limit=[0.01, float("inf")])
    config.save_pretrained(tmp_path)
    assert MambaWithMoEConfig.from_pretrained(tmp_path).mamba_time_step_limit == [0.01, float("inf")]
