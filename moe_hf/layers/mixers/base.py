"""What every mixer is: (B, S, D) in, (B, S, D) out."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from transformers import Cache

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.attention.positions import Rotation
from moe_hf.layers.recorded import Recorded


class MixerOutput(NamedTuple):
    """The mixed sequence (B, S, D), the weights of the mixing where they are at hand, and what later layers need.

    `first_value` (B, S, D) is handed to all later layers of the call; one layer of a model gives it, if any.
    """

    out_BSD: torch.Tensor
    weights: torch.Tensor | None = None
    first_value: torch.Tensor | None = None


class Mixer(Recorded, ABC):
    """Moves information between the tokens of a sequence; subclasses say how.

    Attributes:
        output_projections: names of the linear layers whose result is added to the residual stream; their fresh weights
            are smaller the deeper the model is.
    """

    output_projections: ClassVar[tuple[str, ...]] = ("o_proj",)

    def __init__(self, config: MoEDecoderConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx

    @abstractmethod
    def multiply_adds(self, context: int) -> int:
        """Multiply-adds per token, beyond one for each weight, when `context` tokens are at hand."""

    def require_room(
        self,
        num_tokens: int,
        past_key_values: Cache | None,
        padding_mask: torch.Tensor | None,
        document_starts: torch.Tensor | None,
    ) -> None:
        """Do nothing where so many more tokens can be taken; to be asked before any layer writes into the cache.

        Args:
            num_tokens: positions S of the call.
            past_key_values, padding_mask, document_starts: as in `forward`.

        Raises:
            ConfigError: the mixer reaches over fewer tokens, or has no room for them.
        """
        return

    @abstractmethod
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
        """The mixed sequence, and what goes with it.

        Args:
            x_BSD: the normalised residual stream.
            attention_mask: what the attention function in use takes: None, (B, 1, S, keys), a block mask or (B, keys).
            padding_mask: (B, S), nonzero at real tokens of this call; None means that all are.
            document_starts: (B, S), True where a new document begins; None means that none does.
            position_ids: (B or 1, S).
            rotation: cosines and sines of the positions; None unless positions are rotary.
            past_key_values: state of earlier calls, read and written (`moe_hf.layers.caches.states.states_of`).
            shared_values: what earlier layers of the same call computed and later ones may take from here, by name; may
                be added to. Hooks may hand each layer a copy, so what is not there is computed again.
            first_value: what an earlier layer gave for the later ones (`MixerOutput`).
            **kwargs: handed down to the attention function.
        """
