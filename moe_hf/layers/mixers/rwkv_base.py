"""What both versions of RWKV's time mixing share: states in the cache, long inputs in segments, the first value.

Shapes: B batch, S positions of this call, D width.
"""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from transformers import Cache

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.attention.positions import Rotation
from moe_hf.layers.caches.states import states_of
from moe_hf.layers.init import DrawsOwnWeights
from moe_hf.layers.mixers.base import Mixer, MixerOutput
from moe_hf.ops.sequence.short_conv import token_shift

# Without gradients a longer input is worked through in pieces, so that what is between the projections stays small.
_SEGMENT_LENGTH = 1024


class RWKVState(NamedTuple):
    """What a mixer knows of the tokens before: the last one, (B, 1, D), and the state of its recurrence, in float32."""

    last: torch.Tensor | None = None
    memory: torch.Tensor | None = None


class Tokens(NamedTuple):
    """The tokens of a call or of a segment: the stream, which of them are real, where documents begin, first values."""

    x_BSD: torch.Tensor
    mask_BS: torch.Tensor | None
    starts_BS: torch.Tensor | None
    first_value_BSD: torch.Tensor | None

    def segments(self) -> Iterator["Tokens"]:
        """The tokens in pieces that follow each other."""
        for start in range(0, self.x_BSD.shape[1], _SEGMENT_LENGTH):
            part = slice(start, start + _SEGMENT_LENGTH)
            others = (None if x is None else x[:, part] for x in self[1:])
            yield Tokens(self.x_BSD[:, part], *others)

    def shifted(self, before: RWKVState) -> tuple[torch.Tensor, torch.Tensor]:
        """The token before each one, and the last one, for the next call."""
        shifted_BSD, last = token_shift(
            self.x_BSD, initial_state=before.last, mask_BS=self.mask_BS, starts_BS=self.starts_BS
        )
        # A view would keep all the inputs alive.
        return shifted_BSD, last.clone()

    def is_step(self, before: RWKVState) -> bool:
        """Whether this is one more token after others, as in decoding."""
        return self.x_BSD.shape[1] == 1 and before.memory is not None and self.starts_BS is None


class Mixed(NamedTuple):
    """What the mixing of some tokens gives: the output, the state after it, and the value where it is the first one."""

    out_BSD: torch.Tensor
    state: RWKVState
    value_BSD: torch.Tensor | None = None


class RWKVMixer(Mixer, DrawsOwnWeights):
    """Time mixing of some version."""

    def __init__(self, config: MoEDecoderConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        # The first one gives its value to the later ones, which need it.
        self.is_first = config.mixer_of_layer.index("rwkv") == layer_idx

    @abstractmethod
    def mix(self, tokens: Tokens, before: RWKVState) -> Mixed:
        """The tokens, mixed."""

    def forward(
        self,
        x_BSD: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None,
        padding_mask: torch.Tensor | None,
        document_starts: torch.Tensor | None,
        position_ids: torch.Tensor,
        rotation: Rotation | None,
        past_key_values: Cache | None,
        shared_values: dict[str, torch.Tensor],
        first_value: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> MixerOutput:
        """As `Mixer.forward`; there are no weights."""
        states = states_of(past_key_values, self.layer_idx)
        before = RWKVState() if states is None else RWKVState(states.read("time_mix_last"), states.read("memory"))
        tokens = Tokens(x_BSD, padding_mask, document_starts, first_value)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x_BSD.shape[1] <= _SEGMENT_LENGTH:
            mixed = self.mix(tokens, before)
        else:
            mixed = self._mix_in_segments(tokens, before)
        if states is not None and mixed.state.last is not None and mixed.state.memory is not None:
            states.write("time_mix_last", mixed.state.last)
            states.write("memory", mixed.state.memory)
        return MixerOutput(mixed.out_BSD, first_value=mixed.value_BSD)

    def _mix_in_segments(self, tokens: Tokens, before: RWKVState) -> Mixed:
        out_BSD, values = torch.empty_like(tokens.x_BSD), []
        start = 0
        for segment in tokens.segments():
            mixed = self.mix(segment, before)
            before, stop = mixed.state, start + segment.x_BSD.shape[1]
            out_BSD[:, start:stop] = mixed.out_BSD
            start = stop
            if mixed.value_BSD is not None:
                values.append(mixed.value_BSD)
        return Mixed(out_BSD, before, torch.cat(values, dim=1) if values else None)


def depth_of(config: MoEDecoderConfig, layer_idx: int) -> tuple[float, float]:
    """Where a layer stands: from 0 (the first) to 1 (the last), and from 1 down to nearly 0."""
    layers = config.num_hidden_layers
    return layer_idx / max(layers - 1, 1), 1.0 - layer_idx / layers


def channel_ramp(like: torch.Tensor) -> torch.Tensor:
    """i / D for channel i of the D of a vector, in float32."""
    return torch.arange(len(like), dtype=torch.float32, device=like.device) / len(like)
