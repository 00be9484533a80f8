"""What both versions of Mamba share: projections, a short convolution, states and fresh weights.

Shapes: B batch, S positions of this call, D width of the residual stream, I inner width, C channels that are convolved,
W taps, P = W - 1 earlier inputs.
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
from moe_hf.ops.sequence.short_conv import sum_of_lags, window_of


class MambaState(NamedTuple):
    """What a mixer knows of the tokens before: the last inputs of the convolution, (B, P, C), and the scan's state."""

    conv: torch.Tensor | None = None
    scan: torch.Tensor | None = None


class DepthwiseConv1d(nn.Conv1d):
    """nn.Conv1d with a filter per channel and no padding, computed by this package's operation."""

    def __init__(self, width: int, taps: int, bias: bool) -> None:
        super().__init__(width, width, taps, groups=width, bias=bias)

    def forward(self, x: torch.Tensor, age_BS: torch.Tensor | None = None) -> torch.Tensor:
        """(B, C, S) out of (B, C, P + S); ages as in `moe_hf.ops.sequence.short_conv.Window`."""
        # The transposes are views: the operation wants channels last, whoever wraps a convolution wants them second.
        return sum_of_lags(x.transpose(1, 2), self.weight.squeeze(1), self.bias, age_BS).transpose(1, 2)


class MambaMixer(RecurrentMixer, DrawsOwnWeights):
    """A state space mixer with the parameter names that transformers gives to Mamba's."""

    output_projections: ClassVar[tuple[str, ...]] = ("out_proj",)
    state_type: ClassVar[type[Any]] = MambaState

    def __init__(self, config: MoEDecoderConfig, layer_idx: int, num_projected: int, num_convolved: int) -> None:
        super().__init__(config, layer_idx)
        self.inner_width, self.state_size = config.mamba_inner_width, config.mamba_state_width
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
        window = window_of(x_BSC, self.config.mamba_conv_kernel, initial_state=before.conv, **inputs.layout)
        # What stands in for the module, such as an adapter around it, may know of no ages.
        ages = () if window.age_BS is None else (window.age_BS,)
        # `conv1d` is called as a module and in the layout of nn.Conv1d, for the sake of adapters and hooks on it.
        out_BSC = self.conv1d(window.x.transpose(1, 2), *ages).transpose(1, 2)
        return F.silu(window.unpack(out_BSC)), window.state_BPD

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
