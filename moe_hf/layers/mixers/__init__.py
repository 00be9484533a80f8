"""The table of mixers: what moves information between tokens."""

from collections.abc import Callable

from moe_hf.base.registry import Registry
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.mixers.attention import CausalAttention
from moe_hf.layers.mixers.base import Mixer
from moe_hf.layers.mixers.hyena import HyenaOperator
from moe_hf.layers.mixers.mamba import make_mamba
from moe_hf.layers.mixers.retention import Retention
from moe_hf.layers.mixers.rwkv import make_rwkv

MIXERS: Registry[Callable[[MoEDecoderConfig, int], Mixer]] = Registry(
    "mixer",
    {
        "attention": CausalAttention,
        "retention": Retention,
        "mamba": make_mamba,
        "hyena": HyenaOperator,
        "rwkv": make_rwkv,
    },
)
