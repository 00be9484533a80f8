"""The table of mixers: what moves information between tokens."""

from moe_hf.base.registry import Registry
from moe_hf.layers.mixers.attention import CausalAttention
from moe_hf.layers.mixers.base import Mixer

MIXERS: Registry[type[Mixer]] = Registry("mixer", {"attention": CausalAttention})
