"""The norms that a configuration can ask for."""

from torch import nn

from moe_hf.config.decoder import MoEDecoderConfig


def make_norm(config: MoEDecoderConfig) -> nn.Module:
    """A norm over the width of the residual stream, of the kind `norm_type` names."""
    if config.norm_type == "rms":
        return nn.RMSNorm(config.hidden_size, eps=config.layer_norm_epsilon)
    return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon)
