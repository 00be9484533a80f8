"""The table of feed-forward networks: what works within a token."""

from moe_hf.base.registry import Registry
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.ffn.base import FFN
from moe_hf.layers.ffn.channel_mix import ChannelMix
from moe_hf.layers.ffn.dense import DenseFFN
from moe_hf.layers.ffn.moe import SparseFFN

FFNS: Registry[type[FFN]] = Registry("mlp_layer_types", {"dense": DenseFFN, "sparse": SparseFFN})


def make_ffn(config: MoEDecoderConfig, layer_idx: int) -> FFN:
    """The feed-forward network of a layer that has one."""
    ffn = FFNS[config.ffn_of_layer[layer_idx]](config, layer_idx)
    return ffn if config.mlp_token_shift == "none" else ChannelMix(config, layer_idx, ffn)
