"""What every mixer is: (B, S, D) in, (B, S, D) out."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from transformers import PreTrainedConfig

from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.pickling import PicklesWithoutRecorder


class MixerOutput(NamedTuple):
    """The mixed sequence (B, S, D), the weights of the mixing where they are at hand, and what later layers need.

    `first_value` (B, S, D) is handed to all later layers of the call; one layer of a model gives it, if any.
    """

    out_BSD: torch.Tensor
    weights: torch.Tensor | None = None
    first_value: torch.Tensor | None = None


class Mixer(PicklesWithoutRecorder, ABC):
    """Moves information between the tokens of a sequence; subclasses say how.

    Attributes:
        output_projections: names of the linear layers whose result is added to the residual stream; their fresh weights
            are smaller the deeper the model is.
    """

    output_projections: ClassVar[tuple[str, ...]] = ("o_proj",)

    def __init__(self, config: PreTrainedConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx

    @abstractmethod
    def multiply_adds(self, context: int) -> int:
        """Multiply-adds per token, beyond one for each weight, when `context` tokens are at hand."""

    def require_room(self, num_tokens: int, inputs: LayerInputs) -> None:
        """Do nothing where so many more tokens can be taken; to be asked before any layer writes into the cache.

        Args:
            num_tokens: positions S of the call.
            inputs: as in `forward`.

        Raises:
            ConfigError: the mixer reaches over fewer tokens, or has no room for them.
        """
        return

    @abstractmethod
    def forward(self, x_BSD: torch.Tensor, inputs: LayerInputs) -> MixerOutput:
        """The mixed sequence, and what goes with it.

        Args:
            x_BSD: the normalised residual stream.
            inputs: what else there is to know about the tokens.
        """
