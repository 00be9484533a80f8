"""What both versions of Mamba share: long inputs in segments, states in the cache, a short convolution, fresh weights.

Shapes: B batch, S positions of this call, D width of the residual stream, I inner width, C channels that are convolved,
W taps, P = W - 1 earlier inputs, N state size.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache
from transformers import initialization as init

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.attention.positions import Rotation
from moe_hf.layers.caches.states import states_of
from moe_hf.layers.init import DrawsOwnWeights
from moe_hf.layers.mixers.base import Mixer, MixerOutput
from moe_hf.layers.short_conv import DepthwiseConv1d
from moe_hf.ops.sequence.short_conv import convolved_with

# Without gradients a longer input is worked through in pieces, so that what is between the projections stays small.
SEGMENT_LENGTH = 512


class MambaState(NamedTuple):
    """What a mixer knows of the tokens before: the last inputs of the convolution, (B, P, C), and the scan's state."""

    conv: torch.Tensor | None = None
    scan: torch.Tensor | None = None


class Tokens(NamedTuple):
    """The tokens of one call or of a segment of it.

    The stream, which of them are real, where documents begin, and whether others will follow.
    """

    x_BSD: torch.Tensor
    mask_BS: torch.Tensor | None
    starts_BS: torch.Tensor | None
    keeps_state: bool

    def segments(self) -> Iterator[tuple[int, "Tokens"]]:
        """The tokens in pieces that follow each other, with the position at which each begins."""
        for first in range(0, self.x_BSD.shape[1], SEGMENT_LENGTH):
            part = slice(first, first + SEGMENT_LENGTH)
            mask_BS, starts_BS = (None if x is None else x[:, part] for x in (self.mask_BS, self.starts_BS))
            yield first, Tokens(self.x_BSD[:, part], mask_BS, starts_BS, keeps_state=True)


class MambaBase(Mixer, DrawsOwnWeights):
    """A state space mixer with the parameter names that transformers gives to Mamba's."""

    output_projections: ClassVar[tuple[str, ...]] = ("out_proj",)

    def __init__(self, config: MoEDecoderConfig, layer_idx: int, num_projected: int, num_convolved: int) -> None:
        super().__init__(config, layer_idx)
        self.inner_width = config.mamba_inner_width
        self.in_proj = nn.Linear(config.hidden_size, num_projected, bias=config.mamba_use_bias)
        self.conv1d = DepthwiseConv1d(num_convolved, config.mamba_conv_kernel, bias=config.mamba_use_conv_bias)
        self.out_proj = nn.Linear(self.inner_width, config.hidden_size, bias=config.mamba_use_bias)

    @abstractmethod
    def mix(self, tokens: Tokens, before: MambaState) -> tuple[torch.Tensor, MambaState]:
        """The mixed tokens (B, S, D), and the state after the last real one."""

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
        state = MambaState() if states is None else MambaState(states.read("conv"), states.read("scan"))
        tokens = Tokens(x_BSD, padding_mask, document_starts, keeps_state=states is not None)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or x_BSD.shape[1] <= SEGMENT_LENGTH:
            out_BSD, state = self.mix(tokens, state)
        else:
            out_BSD = torch.empty_like(x_BSD)
            for first, segment in tokens.segments():
                mixed, state = self.mix(segment, state)
                out_BSD[:, first : first + SEGMENT_LENGTH] = mixed
        if states is not None and state.conv is not None and state.scan is not None:
            # The convolution's state may be a view that would keep all its inputs alive.
            states.write("conv", state.conv if x_BSD.shape[1] == 1 else state.conv.clone())
            states.write("scan", state.scan)
        return MixerOutput(out_BSD)

    def convolve(self, x_BSC: torch.Tensor, tokens: Tokens, before: MambaState) -> tuple[torch.Tensor, torch.Tensor]:
        """The convolved and activated channels, and the inputs that the next call needs."""
        x_BSC, state_BPC = convolved_with(
            self._convolve,
            x_BSC,
            self.config.mamba_conv_kernel,
            initial_state=before.conv,
            mask_BS=tokens.mask_BS,
            starts_BS=tokens.starts_BS,
        )
        return F.silu(x_BSC), state_BPC

    def _convolve(self, window: torch.Tensor, age_BS: torch.Tensor | None) -> torch.Tensor:
        # What stands in for the module, such as an adapter around it, may know of no ages.
        ages = () if age_BS is None else (age_BS,)
        return self.conv1d(window.transpose(1, 2), *ages).transpose(1, 2)

    def is_step(self, tokens: Tokens, before: MambaState) -> bool:
        """Whether this is one more token after others, as in decoding."""
        return tokens.x_BSD.shape[1] == 1 and before.scan is not None and tokens.starts_BS is None

    def draw_weights(self, std: float, residual_std: float) -> None:
        """Taps as nn.Conv1d draws them; small draws for what is added to the residual stream."""
        init.kaiming_uniform_(self.conv1d.weight, a=math.sqrt(5))
        if self.conv1d.bias is not None:
            init.zeros_(self.conv1d.bias)
        init.normal_(self.out_proj.weight, mean=0.0, std=residual_std)

    def draw_step_biases(self, bias: nn.Parameter) -> None:
        """Biases for which softplus gives log-uniform step sizes (Gu and Dao 2023, section 3.6)."""
        config = self.config
        low, high = math.log(config.mamba_time_step_min), math.log(config.mamba_time_step_max)
        uniform = torch.rand(bias.shape, device=bias.device, dtype=torch.float32)
        steps = torch.exp(uniform * (high - low) + low).clamp(min=config.mamba_time_step_floor)
        init.copy_(bias, steps + torch.log(-torch.expm1(-steps)))
