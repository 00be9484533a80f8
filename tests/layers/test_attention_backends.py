"""The public place of FlashAttention-3."""

from moe_hf.layers import attention_backends
from moe_hf.layers.attention import backends


def test_it_holds_the_function_and_whether_the_package_is_there() -> None:
    assert attention_backends.flash_attention3 is backends.flash_attention3
    assert attention_backends._HAS_FLASH3 is backends._HAS_FLASH3
