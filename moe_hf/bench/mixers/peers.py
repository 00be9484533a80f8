"""What the mixers are held against where no library has it: the forms that one would write first.

Shapes: B batch, S positions, I inner channels, N state size, D width, T tokens so far.
"""

from typing import Any

import torch

from moe_hf.ops.sequence.fft_conv import dot_with_past


def unbinding_scan(
    u_BSI: torch.Tensor,
    delta_BSI: torch.Tensor,
    a_IN: torch.Tensor,
    b_BSN: torch.Tensor,
    c_BSN: torch.Tensor,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Mamba's scan as transformers computes it on a CPU, but with the tokens unbound once instead of indexed.

    Its backward pass is linear in the tokens then, and its memory that of (B, S, I, N) still.
    """
    decay_BSIN = torch.exp(delta_BSI[..., None] * a_IN)
    added_BSIN = delta_BSI[..., None] * b_BSN[:, :, None] * u_BSI[..., None]
    state_BIN = torch.zeros_like(added_BSIN[:, 0])
    outputs = []
    for decay, added, c_BN in zip(decay_BSIN.unbind(1), added_BSIN.unbind(1), c_BSN.unbind(1), strict=True):
        state_BIN = decay * state_BIN + added
        outputs.append(state_BIN @ c_BN[..., None])
    return torch.stack(outputs, dim=1)[..., 0], None


class CachedDotProduct:
    """Hyena's decoding with the inputs of its convolutions kept, and one dot product over all of them per token.

    Args:
        mixer: Hyena, order 2.
        x_BSD: the context.
        room: tokens that may be decoded after it.
    """

    def __init__(self, mixer: Any, x_BSD: torch.Tensor, room: int) -> None:
        self.mixer = mixer
        length, width = x_BSD.shape[1:]
        with torch.no_grad():
            u_BSC = self.mixer.in_proj(x_BSD)
            self.recent_BSC = u_BSC[:, -self.mixer.short_conv_weight.shape[1] :].clone()
            gates = torch.nn.functional.conv1d(
                u_BSC.transpose(1, 2),
                self.mixer.short_conv_weight[:, None],
                self.mixer.short_conv_bias,
                padding=self.mixer.short_conv_weight.shape[1] - 1,
                groups=u_BSC.shape[-1],
            )[..., :length].transpose(1, 2)
            self.inputs_BTD = torch.zeros(1, length + room, width)
            self.inputs_BTD[:, :length] = gates[..., 2 * width :] * gates[..., width : 2 * width]
            self.reversed_TD = self.mixer.filter.filter(length + room).flip(0).contiguous()
            self.skip_D = self.mixer.filter.skip
        self.length = length

    @torch.no_grad()
    def step(self, x_B1D: torch.Tensor) -> torch.Tensor:
        """The mixed token (B, 1, D)."""
        u_B1C = self.mixer.in_proj(x_B1D)
        self.recent_BSC = torch.cat([self.recent_BSC[:, 1:], u_B1C], dim=1)
        z_BC = (self.recent_BSC * self.mixer.short_conv_weight.T).sum(dim=1) + self.mixer.short_conv_bias
        last_gate_BD, gate_BD, v_BD = z_BC.chunk(3, dim=-1)
        self.inputs_BTD[:, self.length] = gate_BD * v_BD
        self.length += 1
        past_BTD = self.inputs_BTD[:, : self.length]
        out_BD = dot_with_past(past_BTD, self.reversed_TD[-self.length :]) + past_BTD[:, -1] * self.skip_D
        return self.mixer.out_proj(out_BD * last_gate_BD)[:, None]
