"""The table of mixers: what moves information between tokens."""

from collections.abc import Callable

from moe_hf.base.registry import Registry
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.mixers.attention import CausalAttention
from moe_hf.layers.mixers.base import Mixer
from moe_hf.layers.mixers.hyena import HyenaOperator
from moe_hf.layers.mixers.mamba1 import Mamba1
from moe_hf.layers.mixers.mamba2 import Mamba2
from moe_hf.layers.mixers.retention import Retention
from moe_hf.layers.mixers.rwkv4 import RWKV4
from moe_hf.layers.mixers.rwkv7 import RWKV7


def _mamba(config: MoEDecoderConfig, layer_idx: int) -> Mixer:
    return (Mamba1 if config.mamba_version == 1 else Mamba2)(config, layer_idx)


def _rwkv(config: MoEDecoderConfig, layer_idx: int) -> Mixer:
    return (RWKV4 if config.rwkv_version == 4 else RWKV7)(config, layer_idx)


MIXERS: Registry[Callable[[MoEDecoderConfig, int], Mixer]] = Registry(
    "mixer",
    {
        "attention": CausalAttention,
        "retention": Retention,
        "mamba": _mamba,
        "hyena": HyenaOperator,
        "rwkv": _rwkv,
    },
)
