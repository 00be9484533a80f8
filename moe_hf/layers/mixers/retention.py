"""RetNet's multi-scale retention: linear attention whose heads forget at fixed rates of their own.

Shapes: B batch, S positions of this call, D width, H heads, K key width of a head, V value width of a head, P pairs of
channels that are turned.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Cache

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.attention.positions import Rotation
from moe_hf.layers.caches.states import states_of
from moe_hf.layers.mixers.base import Mixer, MixerOutput
from moe_hf.ops.sequence.backends import pick_kernel
from moe_hf.ops.sequence.fla_scalar_decay import FLA_SCALAR_DECAY
from moe_hf.ops.sequence.scalar_decay import (
    parallel_scalar_decay,
    reference_scalar_decay,
    scalar_decay,
    scalar_decay_step,
)

# Without gradients a longer input is worked through in pieces, so that what is between the projections stays small.
SEGMENT_LENGTH = 512
_FORMS = {"chunkwise": scalar_decay, "parallel": parallel_scalar_decay, "recurrent": reference_scalar_decay}


class Tokens(NamedTuple):
    """The tokens of a call, or a piece of them.

    Attributes:
        x_BSD: the stream.
        mask_BS: nonzero at real tokens, or None.
        starts_BS: True where a document begins, or None.
        cos_BSP: cosines of the angles by which each pair of channels is turned, or None.
        sin_BSP: their sines.
    """

    x_BSD: torch.Tensor
    mask_BS: torch.Tensor | None
    starts_BS: torch.Tensor | None
    cos_BSP: torch.Tensor | None = None
    sin_BSP: torch.Tensor | None = None

    def pieces(self) -> Iterator["Tokens"]:
        """Pieces of `SEGMENT_LENGTH` tokens that follow each other."""
        for first in range(0, self.x_BSD.shape[1], SEGMENT_LENGTH):
            part = slice(first, first + SEGMENT_LENGTH)
            yield Tokens(self.x_BSD[:, part], *(None if x is None else x[:, part] for x in self[1:]))


class Retention(Mixer):
    """Multi-scale retention (Sun et al. 2023, RetNet, eqs. 5 to 8), with the parameter names of flash-linear-attention.

    The paper's normalisers of the scores are left out: the norm of each head's output takes them back.
    """

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
        state_BHKV = None if states is None else states.read("retention")
        tokens = Tokens(x_BSD, padding_mask, document_starts, *self._rotation(position_ids, shared_values))
        whole = torch.is_grad_enabled() or torch.compiler.is_compiling() or x_BSD.shape[1] <= SEGMENT_LENGTH
        if whole or self.config.retention_form != "chunkwise":
            out_BSD, state_BHKV = self._retain(tokens, state_BHKV, states is not None)
        else:
            outputs = []
            for piece in tokens.pieces():
                mixed, state_BHKV = self._retain(piece, state_BHKV, True)
                outputs.append(mixed)
            out_BSD = torch.cat(outputs, dim=1)
        if states is not None and state_BHKV is not None:
            states.write("retention", state_BHKV)
        return MixerOutput(out_BSD)

    def _retain(
        self, tokens: Tokens, state_BHKV: torch.Tensor | None, output_final_state: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The mixed tokens (B, S, D), and the state after the last real one."""
        x_BSD, mask_BS, starts_BS, cos_BSP, sin_BSP = tokens
        query, key, value = (
            projection(x_BSD).unflatten(-1, (self.heads, -1)) for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        scale = self.key_width**-0.5
        if cos_BSP is None or sin_BSP is None:
            query = query * scale
        else:
            interleaved = self.config.retention_rotation == "interleaved"
            query = _turned(query, cos_BSP * scale, sin_BSP * scale, interleaved)
            key = _turned(key, cos_BSP, sin_BSP, interleaved)
        # gamma_h = 1 - 2^(-5 - h), eq. 8.
        log_decay_H = torch.log1p(-torch.exp2(-5 - torch.arange(self.heads, device=x_BSD.device, dtype=torch.float32)))
        if x_BSD.shape[1] == 1 and state_BHKV is not None and starts_BS is None:
            mask_B = None if mask_BS is None else mask_BS[:, 0]
            out_BHV, state_BHKV = scalar_decay_step(
                query[:, 0], key[:, 0], value[:, 0], log_decay_H, initial_state=state_BHKV, mask_B=mask_B
            )
            out_BSHV = out_BHV[:, None]
        else:
            out_BSHV, state_BHKV = self._form(x_BSD.device)(
                query,
                key,
                value,
                log_decay_H,
                initial_state=state_BHKV,
                mask_BS=mask_BS,
                starts_BS=starts_BS,
                output_final_state=output_final_state,
            )
        out_BSX = self.g_norm(out_BSHV).flatten(2)
        if self.g_proj is not None:
            out_BSX = F.silu(self.g_proj(x_BSD)) * out_BSX
        return self.o_proj(out_BSX), state_BHKV

    def _form(self, device: torch.device) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
        """What computes a sequence; kernels of packages compute the chunkwise form alone."""
        form = _FORMS[self.config.retention_form]
        kernel = pick_kernel(self.config.mixer_backend, (FLA_SCALAR_DECAY,), device) if form is scalar_decay else None
        return form if kernel is None else kernel.run

    def _rotation(self, position_ids: torch.Tensor, shared_values: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Cosines and sines of the positions' angles, (B or 1, S, P), in float32; nothing where none are turned."""
        kind, pairs, theta = self.config.retention_rotation, self.key_width // 2, self.config.retention_rope_theta
        if kind == "none":
            return ()
        names = ("retention_cos_BSP", "retention_sin_BSP")
        if names[0] not in shared_values:
            steps_P = torch.arange(pairs, device=position_ids.device, dtype=torch.float32)
            last = max(pairs - 1, 1) if kind == "interleaved" else pairs
            angle_BSP = position_ids[..., None].float() * theta ** -(steps_P / last)
            found = (angle_BSP.cos(), angle_BSP.sin())
            if torch.compiler.is_compiling():
                # The compiler finds what layers have in common by itself, and may not follow a change of the dict.
                return found
            shared_values.update(zip(names, found, strict=True))
        return tuple(shared_values[name] for name in names)


def _turned(x_BSHK: torch.Tensor, cos_BSP: torch.Tensor, sin_BSP: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """The sequence with its pairs of channels turned, in float32 at least."""
    cos_BS1P, sin_BS1P = cos_BSP[:, :, None], sin_BSP[:, :, None]
    pair = -1 if interleaved else -2
    first, second = x_BSHK.unflatten(-1, (-1, 2) if interleaved else (2, -1)).unbind(pair)
    turned_first = torch.addcmul(first * cos_BS1P, second, sin_BS1P, value=-1)
    turned_second = torch.addcmul(second * cos_BS1P, first, sin_BS1P)
    return torch.stack((turned_first, turned_second), dim=pair).flatten(-2)
