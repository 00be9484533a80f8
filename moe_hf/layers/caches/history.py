"""What the Hyena operator asks of the layer of a cache, growing or static, and what both of these share.

Shapes: B batch, S positions of this call, P earlier inputs, D channels, C channels of the short convolution, L lags, G
documents of a row.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch

from moe_hf.layers.inputs import LayerInputs


class LongFilter(NamedTuple):
    """The filter of one long convolution.

    Attributes:
        number: which of the layer's convolutions, from 0.
        of: gives the first so many lags, (L, D).
        max_lags: lags that there are.
        skip_D: weight of the input itself.
        version: equal as long as the weights behind the filter are; None where that cannot be said.
    """

    number: int
    of: Callable[[int], torch.Tensor]
    max_lags: int
    skip_D: torch.Tensor
    version: tuple[tuple[int, int], ...] | None = None


class Reach(NamedTuple):
    """Real tokens of the longest document, and of the last document of each row: a number where all are the same."""

    longest: int
    last_B: torch.Tensor | int


class History(ABC):
    """The inputs of a layer's convolutions in earlier calls; of `LayerInputs` it reads padding and documents."""

    @abstractmethod
    def require_room(self, num_tokens: int, max_lags: int, inputs: LayerInputs) -> None:
        """Do nothing where so many more tokens can be taken; changes nothing either way.

        Raises:
            ConfigError: a document would be longer than `max_lags`, or than there is room for.
        """

    @abstractmethod
    def recent_inputs(self, count: int) -> torch.Tensor | None:
        """The last `count` real inputs of the short convolution, (B, count, C), zeros before the first."""

    @abstractmethod
    def keep_inputs(self, x_BSC: torch.Tensor, count: int, inputs: LayerInputs, start: int = 0) -> None:
        """Remember inputs of the short convolution, of which the next ones need the last `count`.

        Those of one call may come in several parts, with `start` the position in the call at which a part begins.
        """

    @abstractmethod
    def convolve(self, x_BSD: torch.Tensor, long_filter: LongFilter, inputs: LayerInputs) -> torch.Tensor:
        """`long_conv` behind all earlier inputs of the same convolution, which these then join."""


def reach_of(before_B: torch.Tensor | int, num_tokens: int, inputs: LayerInputs) -> Reach:
    """How long documents are after a call.

    Args:
        before_B: real tokens of each row's last document before the call.
        num_tokens: positions S of the call.
        inputs: of the call.
    """
    mask_BS, starts_BS = inputs.padding_mask, inputs.document_starts
    if mask_BS is None and starts_BS is None:
        last_B = before_B + num_tokens
        return Reach(last_B if isinstance(last_B, int) else int(last_B.max()), last_B)
    if starts_BS is not None:
        document_BS = starts_BS.long().cumsum(1)
    elif mask_BS is not None:
        document_BS = torch.zeros_like(mask_BS, dtype=torch.long)
    real_BS = torch.ones_like(document_BS) if mask_BS is None else mask_BS.bool().long()
    count_BG = real_BS.new_zeros(real_BS.shape[0], num_tokens + 1).scatter_add_(1, document_BS, real_BS)
    # Document 0 of a row goes on from the calls before.
    first_B = before_B if isinstance(before_B, int) else before_B.to(count_BG.device)
    count_BG = torch.cat([(count_BG[:, 0] + first_B)[:, None], count_BG[:, 1:]], dim=1)
    return Reach(int(count_BG.max()), count_BG.gather(1, document_BS[:, -1:])[:, 0])


def last_entries(x_BPC: torch.Tensor, count: int) -> torch.Tensor:
    """The last `count` entries, (B, count, C), zeros before the first."""
    missing = count - x_BPC.shape[1]
    if missing <= 0:
        return x_BPC[:, x_BPC.shape[1] - count :]
    return torch.nn.functional.pad(x_BPC, (0, 0, missing, 0))
