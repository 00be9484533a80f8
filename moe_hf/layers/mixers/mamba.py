"""What both versions of Mamba share: projections, a short convolution, states and fresh weights.

Shapes: B batch, S positions of this call, D width of the residual stream, I inner width, C channels that are convolved,
W taps, P = W - 1 earlier inputs, N state size.
"""

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.init import DrawsOwnWeights
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.recurrent import RecurrentMixer
from moe_hf.layers.short_conv import DepthwiseConv1d
from moe_hf.ops.sequence.short_conv import convolved_with


class MambaState(NamedTuple):
    """What a mixer knows of the tokens before: the last inputs of the convolution, (B, P, C), and the scan's state."""

    conv: torch.Tensor | None = None
    scan: torch.Tensor | None = None


class MambaMixer(RecurrentMixer, DrawsOwnWeights):
    """A state space mixer with the parameter names that transformers gives to Mamba's."""

    output_projections: ClassVar[tuple[str, ...]] = ("out_proj",)
    state_type: ClassVar[type[Any]] = MambaState

    def __init__(self, config: MoEDecoderConfig, layer_idx: int, num_projected: int, num_convolved: int) -> None:
        super().__init__(config, layer_idx)
        self.inner_width, self.state_size = config.mamba_inner_width, config.mamba_states
        self.in_proj = nn.Linear(config.hidden_size, num_projected, bias=config.mamba_use_bias)
        self.conv1d = DepthwiseConv1d(num_convolved, config.mamba_conv_kernel, bias=config.mamba_use_conv_bias)
        self.out_proj = nn.Linear(self.inner_width, config.hidden_size, bias=config.mamba_use_bias)

    def multiply_adds(self, context: int) -> int:
        """The state's input, its decay and its readout; the context does not matter."""
        return 3 * self.inner_width * self.state_size

    def convolve(
        self, x_BSC: torch.Tensor, inputs: LayerInputs, before: MambaState
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The convolved and activated channels, and the inputs that the next call needs."""
        x_BSC, state_BPC = convolved_with(
            self._convolve, x_BSC, self.config.mamba_conv_kernel, initial_state=before.conv, **inputs.layout
        )
        return F.silu(x_BSC), state_BPC

    def _convolve(self, window: torch.Tensor, age_BS: torch.Tensor | None) -> torch.Tensor:
        # What stands in for the module, such as an adapter around it, may know of no ages.
        ages = () if age_BS is None else (age_BS,)
        return self.conv1d(window.transpose(1, 2), *ages).transpose(1, 2)

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
        # The inverse of softplus, log(exp(x) - 1), in a form that neither overflows nor loses small steps.
        init.copy_(bias, steps + torch.log(-torch.expm1(-steps)))
