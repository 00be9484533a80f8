"""The long convolution one token at a time: a short dot product per token, and one FFT per epoch of tokens.

Shapes: B batch, P inputs at hand, E tokens of one epoch, D channels, L lags.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from moe_hf.ops.dtypes import float32_or_more
from moe_hf.ops.sequence.fft_conv import dot_with_past, future_outputs
from moe_hf.ops.sequence.long_conv import require_lags

# Up to so many inputs, one dot product over all of them is the cheapest way.
SHORTEST_EPOCH = 256
# Where the dot products and the FFT of an epoch cost the same on a CPU, over sqrt(n log2 n).
EPOCH_FACTOR = 2.5


class Epoch(NamedTuple):
    """What the inputs before `start` contribute to the outputs from `start` on; nothing where `start` is 0."""

    start: int
    future_BED: torch.Tensor | None
    reversed_filter_ED: torch.Tensor

    @property
    def length(self) -> int:
        """Tokens that the epoch can serve."""
        return len(self.reversed_filter_ED)


def epoch_length(num_inputs: int) -> int:
    """Tokens of an epoch that begins after so many inputs: of the order sqrt(n log n), the paper's optimum.

    >>> [epoch_length(n) for n in (0, 100, 8192)]
    [256, 256, 815]
    """
    if num_inputs < SHORTEST_EPOCH:
        return SHORTEST_EPOCH
    return max(SHORTEST_EPOCH, int(EPOCH_FACTOR * math.sqrt(num_inputs * math.log2(num_inputs))))


def future_fill_step(
    inputs_BPD: torch.Tensor,
    filter_of: Callable[[int], torch.Tensor],
    max_lags: int,
    skip_D: torch.Tensor | None = None,
    *,
    epoch: Epoch | None = None,
) -> tuple[torch.Tensor, Epoch]:
    """The convolution's output at the last input, and the epoch to give with the next one.

    FutureFill (Agarwal et al. 2024, arXiv 2410.03766, algorithm 2): the inputs before an epoch are convolved into all
    its outputs at once, and each token adds what the epoch's own inputs contribute: O(sqrt(n log n)) per token. Up to
    `SHORTEST_EPOCH` inputs there is one epoch without a past. Exact for every row whose inputs are right-aligned.

    Args:
        inputs_BPD: all inputs so far, the newest last, zeros before the first one of a shorter row. Never written to:
            it may be a view of a buffer that its owner fills.
        filter_of: gives the filter's first so many lags, (L, D); asked once per epoch, so that nobody need keep them.
        max_lags: lags that there are.
        skip_D: weight of the input itself.
        epoch: what the step before returned, for the same inputs; None, or one that is used up, makes a new one. It
            holds as long as no input before its `start` changes. Where rows are chosen or repeated, so must be those
            of `future_BED`.

    Returns:
        (B, D) in the dtype of the inputs, and the epoch.

    Raises:
        ConfigError: there are more inputs than lags.
    """
    total = inputs_BPD.shape[1]
    require_lags(total, max_lags)
    if epoch is None or not epoch.start < total <= epoch.start + epoch.length:
        epoch = _new_epoch(inputs_BPD, filter_of, max_lags)
    local = total - epoch.start
    out_BD = dot_with_past(inputs_BPD[:, epoch.start :], epoch.reversed_filter_ED[epoch.length - local :])
    if epoch.future_BED is not None:
        out_BD = out_BD + epoch.future_BED[:, local - 1]
    if skip_D is not None:
        out_BD = out_BD.addcmul(inputs_BPD[:, -1].to(out_BD.dtype), skip_D.to(out_BD.dtype))
    return out_BD.to(inputs_BPD.dtype), epoch


def _new_epoch(inputs_BPD: torch.Tensor, filter_of: Callable[[int], torch.Tensor], max_lags: int) -> Epoch:
    total = inputs_BPD.shape[1]
    # The newest input opens the epoch of its own output. While there are few, one epoch without a past holds all.
    start = total - 1 if total > SHORTEST_EPOCH else 0
    length = min(epoch_length(start), max_lags - start)
    filter_LD = filter_of(start + length)
    # Turned round once per epoch, so that each token's dot product reads inputs and lags in the same direction.
    reversed_ED = filter_LD[:length].to(float32_or_more(inputs_BPD)).flip(0)
    future_BED = future_outputs(inputs_BPD[:, :start], filter_LD, length) if start else None
    return Epoch(start, future_BED, reversed_ED)
