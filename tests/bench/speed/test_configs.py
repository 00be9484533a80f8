"""Configurations made from a size of the sweep."""

import pytest

from moe_hf.base.errors import ConfigError
from moe_hf.bench.speed.configs import batch_shape, moe_config
from tests.bench.measured import SIZE


def test_the_configuration_has_the_numbers_of_the_size():
    config = moe_config(SIZE._replace(capacity_factor=1.5, router_type="switch", k=1), vocab_size=100)
    assert (config.hidden_size, config.moe_intermediate_size, config.num_experts) == (16, 32, 4)
    assert config.vocab_size == 100
    assert config.router_eval_capacity_factor == config.router_capacity_factor == 1.5
    assert config.eos_token_id is None


def test_heads_are_64_wide_where_they_divide_the_width():
    assert moe_config(SIZE._replace(hidden_size=192)).num_attention_heads == 3
    assert moe_config(SIZE._replace(hidden_size=100)).num_attention_heads == 1


def test_what_a_router_cannot_do_is_refused():
    with pytest.raises(ConfigError):
        moe_config(SIZE._replace(router_type="switch"))


def test_tokens_are_laid_out_in_full_contexts_where_they_divide():
    assert batch_shape(SIZE._replace(tokens=512)) == (2, 256)
    assert batch_shape(SIZE) == (1, 24)
