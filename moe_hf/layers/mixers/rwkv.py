"""What both versions of RWKV's time mixing share: the token shift, states, the first value, and where a layer stands.

Shapes: B batch, S positions of this call, D width.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from transformers import PreTrainedConfig

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.init import DrawsOwnWeights
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.recurrent import RecurrentMixer
from moe_hf.ops.sequence.short_conv import token_shift


class RWKVState(NamedTuple):
    """What a mixer knows of the tokens before: the last one, (B, 1, D), and the state of its recurrence, in float32."""

    time_mix_last: torch.Tensor | None = None
    memory: torch.Tensor | None = None


class RWKVMixer(RecurrentMixer, DrawsOwnWeights):
    """Time mixing of some version."""

    state_type: ClassVar[type[Any]] = RWKVState
    stretch_length: ClassVar[int] = 1024

    def __init__(self, config: MoEDecoderConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        # The first one gives its value to the later ones, which need it.
        self.is_first = config.mixer_of_layer.index("rwkv") == layer_idx

    def shifted(self, x_BSD: torch.Tensor, inputs: LayerInputs, before: RWKVState) -> tuple[torch.Tensor, torch.Tensor]:
        """The token before each one, and the last one, for the next call."""
        return token_shift(x_BSD, initial_state=before.time_mix_last, **inputs.layout)


def depth_of(config: PreTrainedConfig, layer_idx: int) -> tuple[float, float]:
    """Where a layer stands: from 0 (the first) to 1 (the last), and from 1 down to nearly 0."""
    layers = config.num_hidden_layers
    return layer_idx / max(layers - 1, 1), 1.0 - layer_idx / layers


def channel_ramp(like: torch.Tensor) -> torch.Tensor:
    """i / D for channel i of the D of a vector, in float32."""
    return torch.arange(len(like), dtype=torch.float32, device=like.device) / len(like)
