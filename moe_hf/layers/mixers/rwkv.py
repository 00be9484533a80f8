"""Chooses the version of RWKV's time mixing."""

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.mixers.rwkv4 import RWKV4
from moe_hf.layers.mixers.rwkv7 import RWKV7
from moe_hf.layers.mixers.rwkv_base import RWKVMixer


def make_rwkv(config: MoEDecoderConfig, layer_idx: int) -> RWKVMixer:
    """The time mixing of a layer, of the version that `rwkv_version` names."""
    return (RWKV4 if config.rwkv_version == 4 else RWKV7)(config, layer_idx)
