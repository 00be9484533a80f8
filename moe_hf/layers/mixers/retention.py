"""RetNet's multi-scale retention: linear attention whose heads forget at fixed rates of their own.

Shapes: B batch, S positions of this call, D width, H heads, K key width of a head, V value width of a head, P pairs of
channels that are turned, X width of all heads together.
"""

from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from moe_hf.base.errors import ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.attention.positions import Rotation
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers.base import MixerOutput
from moe_hf.layers.mixers.recurrent import RecurrentMixer
from moe_hf.ops.sequence.fla_scalar_decay import FLA_SCALAR_DECAY
from moe_hf.ops.sequence.scalar_decay import (
    parallel_scalar_decay,
    reference_scalar_decay,
    scalar_decay,
    scalar_decay_step,
)

_FORMS = {"chunkwise": scalar_decay, "parallel": parallel_scalar_decay, "recurrent": reference_scalar_decay}


class RetentionState(NamedTuple):
    """The state of each head, (B, H, K, V), in float32."""

    retention: torch.Tensor | None = None


class Retention(RecurrentMixer):
    """Multi-scale retention (Sun et al. 2023, RetNet, eqs. 5 to 8), with the parameter names of flash-linear-attention.

    The paper's normalisers of the scores are left out: the norm of each head's output takes them back.
    """

    state_type: ClassVar[type[Any]] = RetentionState

    def __init__(self, config: MoEDecoderConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.heads, bias = config.retention_heads, config.retention_bias
        width, keys, values = config.hidden_size, config.retention_key_width, config.retention_value_width
        self.key_width = keys // self.heads
        self.q_proj = nn.Linear(width, keys, bias=bias)
        self.k_proj = nn.Linear(width, keys, bias=bias)
        self.v_proj = nn.Linear(width, values, bias=bias)
        self.g_proj = nn.Linear(width, values, bias=bias) if config.retention_gate else None
        self.o_proj = nn.Linear(values, width, bias=bias)
        norm = nn.RMSNorm if config.retention_norm == "rms" else nn.LayerNorm
        self.g_norm = norm(
            values // self.heads, eps=config.layer_norm_epsilon, elementwise_affine=config.retention_norm_affine
        )

    def multiply_adds(self, context: int) -> int:
        """Of writing and reading the state, whatever the context."""
        return 2 * self.key_width * self.config.retention_value_width

    def _at_once(self, length: int) -> bool:
        # The other forms are there to be compared, whole.
        return super()._at_once(length) or self.config.retention_form != "chunkwise"

    def mix(
        self, x_BSD: torch.Tensor, inputs: LayerInputs, before: RetentionState, keeps_state: bool
    ) -> tuple[MixerOutput, RetentionState]:
        """As in RecurrentMixer."""
        query, key, value = (
            projection(x_BSD).unflatten(-1, (self.heads, -1)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        scale = self.key_width**-0.5
        if inputs.rotation is None:
            query = query * scale
        else:
            cos_BSP, sin_BSP = inputs.rotation
            interleaved = self.config.retention_rotation == "interleaved"
            # The scale goes along with the angles, which saves a pass over the queries.
            query = _turned(query, cos_BSP * scale, sin_BSP * scale, interleaved)
            key = _turned(key, cos_BSP, sin_BSP, interleaved)
        # gamma_h = 1 - 2^(-5 - h), eq. 8.
        # By log1p, since 1 - x rounds off the digits of a small x.
        log_decay_H = torch.log1p(-torch.exp2(-5 - torch.arange(self.heads, device=x_BSD.device, dtype=torch.float32)))
        if self.is_step(before.retention, x_BSD, inputs):
            parts = (query[:, 0], key[:, 0], value[:, 0], log_decay_H)
            out_BHV, state_BHKV = scalar_decay_step(*parts, initial_state=before.retention, mask_B=inputs.mask_of_step)
            out_BSHV = out_BHV[:, None]
        else:
            form, parts = _FORMS[self.config.retention_form], (query, key, value, log_decay_H)
            # Packages compute the chunkwise form alone.
            kernels = (FLA_SCALAR_DECAY,) if form is scalar_decay else ()
            out_BSHV, state_BHKV = self.recur(
                form, kernels, parts, inputs, before.retention, output_final_state=keeps_state
            )
        out_BSX = self.g_norm(out_BSHV).flatten(2)
        if self.g_proj is not None:
            out_BSX = F.silu(self.g_proj(x_BSD)) * out_BSX
        return MixerOutput(self.o_proj(out_BSX)), RetentionState(state_BHKV)

    def prepared(self, inputs: LayerInputs) -> LayerInputs:
        """With the angles of retention's own rotation, in place of those of attention."""
        turns = self.config.retention_rotation != "none"
        return inputs._replace(rotation=inputs.shared("retention", lambda: self._rotation(inputs)) if turns else None)

    def _rotation(self, inputs: LayerInputs) -> Rotation:
        """Cosines and sines of the positions' angles, (B or 1, S, P), in float32."""
        position_ids = inputs.position_ids
        if position_ids is None:
            raise ConfigError("position_ids=None is not allowed beside a rotation; give the place of each token (B, S)")
        pairs, theta = self.key_width // 2, self.config.retention_rope_theta
        steps_P = torch.arange(pairs, device=position_ids.device, dtype=torch.float32)
        # The exponents reach 1 as in RetNet's own code (torchscale); in the other layout they stop short, as RoPE's do.
        last = max(pairs - 1, 1) if self.config.retention_rotation == "interleaved" else pairs
        angle_BSP = position_ids[..., None].float() * theta ** -(steps_P / last)
        return Rotation(angle_BSP.cos(), angle_BSP.sin())


def _turned(x_BSHK: torch.Tensor, cos_BSP: torch.Tensor, sin_BSP: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """The sequence with its pairs of channels turned, in float32 at least."""
    cos_BS1P, sin_BS1P = cos_BSP[:, :, None], sin_BSP[:, :, None]
    pair = -1 if interleaved else -2
    first, second = x_BSHK.unflatten(-1, (-1, 2) if interleaved else (2, -1)).unbind(pair)
    turned_first = torch.addcmul(first * cos_BS1P, second, sin_BS1P, value=-1)
    turned_second = torch.addcmul(second * cos_BS1P, first, sin_BS1P)
    return torch.stack((turned_first, turned_second), dim=pair).flatten(-2)
