"""The public place of FlashAttention-3; the code lies in `moe_hf.layers.attention.backends`."""

from moe_hf.layers.attention.backends import _HAS_FLASH3, flash_attention3

__all__ = ["_HAS_FLASH3", "flash_attention3"]
