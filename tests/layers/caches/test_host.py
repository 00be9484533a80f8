import inspect

import pytest
from transformers import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast, SequenceClassifierOutputWithPast

from moe_hf.base.errors import ConfigError
from moe_hf.layers.caches.host import CACHE_NAME, named, one_cache


def test_the_hosts_functions_and_outputs_know_the_name() -> None:
    cache = DynamicCache()
    assert CACHE_NAME in inspect.signature(create_causal_mask).parameters
    assert CausalLMOutputWithPast(**named(cache))[CACHE_NAME] is cache
    assert SequenceClassifierOutputWithPast(**named(None)).get(CACHE_NAME) is None


def test_one_of_two_names_is_enough_and_two_caches_are_refused() -> None:
    cache = DynamicCache()
    assert one_cache(cache, None) is one_cache(None, cache) is one_cache(cache, cache) is cache
    assert one_cache(None, None) is None
    with pytest.raises(ConfigError, match="give one"):
        one_cache(cache, DynamicCache())
