"""Causal convolutions of a few taps, each channel by itself, that carry their last inputs from call to call.

Shapes: B batch, S positions of this call, D channels, W taps, P = W - 1 earlier inputs.
"""

from typing import Any, NamedTuple, Unpack

import torch
from torch.nn import functional as F

from moe_hf.ops.sequence.contract import Compaction, Layout, edges_of, without_padding

# Tokens at a time: a block of a thousand channels fits the processor's second cache.
_BLOCK = 256


def short_conv(
    x_BSD: torch.Tensor,
    weight_DW: torch.Tensor,
    bias_D: torch.Tensor | None = None,
    *,
    initial_state: torch.Tensor | None = None,
    **layout: Unpack[Layout],
) -> tuple[torch.Tensor, torch.Tensor]:
    """`out[t] = bias + sum over lags of weight[:, W - 1 - lag] * x[t - lag]`, and the inputs that the next call needs.

    Args:
        x_BSD: the sequence.
        weight_DW: the taps; the last column is the token itself, as in nn.Conv1d.
        bias_D: added to each token.
        initial_state: (B, P, D), the last inputs of the earlier calls; None where there were none, which is zeros.
        **layout: as in `contract.Layout`; no lag reaches over a start.

    Returns:
        The convolved sequence (arbitrary at padding), and the state (B, P, D) after the last real token.
    """

    window = window_of(x_BSD, weight_DW.shape[1], initial_state=initial_state, **layout)
    return window.unpack(sum_of_lags(window.x, weight_DW, bias_D, window.age_BS)), window.state_BPD


class Window(NamedTuple):
    """What the taps slide over, for whoever holds them: `short_conv` itself, or a module that is called.

    Attributes:
        x: (B, P + S, D), the earlier inputs in front and, where there is padding, the real tokens before it.
        age_BS: tokens since the start of the token's document; lags beyond it are zeros. None where none reach so far.
        state_BPD: the inputs that the next call needs.
        moved: how padding was set aside, if it was.
    """

    x: torch.Tensor
    age_BS: torch.Tensor | None
    state_BPD: torch.Tensor
    moved: Compaction | None

    def unpack(self, out_BSD: torch.Tensor) -> torch.Tensor:
        """What was convolved, each token back at its place."""
        return out_BSD if self.moved is None else self.moved.unpack(out_BSD)


def window_of(
    x_BSD: torch.Tensor, num_taps: int, *, initial_state: torch.Tensor | None = None, **layout: Unpack[Layout]
) -> Window:
    """The window of a call; `num_taps` is W, the other arguments are those of `short_conv`."""
    x_BSD, starts_BS, moved = without_padding(x_BSD, edges_of(**layout))
    batch, _, width = x_BSD.shape
    past = num_taps - 1
    if initial_state is None:
        initial_state = x_BSD.new_zeros(batch, past, width)
    x = torch.cat([initial_state.to(x_BSD.dtype), x_BSD], dim=1)
    age_BS = None if starts_BS is None else _tokens_since_start(starts_BS, past)
    return Window(x, age_BS, _last_inputs(x, past, moved, starts_BS), moved)


def token_shift(
    x_BSD: torch.Tensor,
    *,
    initial_state: torch.Tensor | None = None,
    **layout: Unpack[Layout],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's predecessor (Peng et al. 2023, RWKV, section 3.1.1), zero where a document begins, and the last one.

    Args:
        x_BSD: the sequence.
        initial_state: (B, 1, D), the last token of the earlier calls; None where there were none.
        **layout: as in `contract.Layout`.

    Returns:
        The predecessors (arbitrary at padding), and the state (B, 1, D): the last real token.
    """
    x_BSD, starts_BS, moved = without_padding(x_BSD, edges_of(**layout))
    if initial_state is None:
        initial_state = torch.zeros_like(x_BSD[:, :1])
    window = torch.cat([initial_state.to(x_BSD.dtype), x_BSD], dim=1)
    before_BSD = window[:, :-1]
    if starts_BS is not None:
        before_BSD = before_BSD.masked_fill(starts_BS[..., None], 0.0)
    if moved is None:
        # A view would keep the whole window alive.
        return before_BSD, window[:, -1:].clone()
    return moved.unpack(before_BSD), _rows_at(window, moved.count_B, 1)


def _tokens_since_start(starts_BS: torch.Tensor, past: int) -> torch.Tensor:
    # Before the first start the history counts as well.
    position_S = torch.arange(starts_BS.shape[1], device=starts_BS.device)
    begun_BS = torch.where(starts_BS, position_S, -past).cummax(dim=1).values
    return position_S - begun_BS


def sum_of_lags(
    window: torch.Tensor, weight_DW: torch.Tensor, bias_D: torch.Tensor | None, age_BS: torch.Tensor | None = None
) -> torch.Tensor:
    """The convolution itself: (B, S, D) out of (B, P + S, D); ages as in `Window`."""
    weight_DW = weight_DW.to(window.dtype)
    taps = weight_DW.shape[1]
    length = window.shape[1] - taps + 1
    # Decoding: one product over the window in place of a call per tap.
    if age_BS is None and length == 1:
        out_BSD = (window * weight_DW.t()).sum(1, keepdim=True)
    # Not while compiling: a compiler fuses the plain loop below by itself.
    elif age_BS is None and not torch.compiler.is_compiling():
        out_BSD = _LagSum.apply(window, weight_DW.t())
    else:
        out_BSD = window[:, taps - 1 :] * weight_DW[:, taps - 1]
        for lag in range(1, taps):
            start = taps - 1 - lag
            shifted = window[:, start : start + length]
            if age_BS is not None:
                shifted = shifted.masked_fill((age_BS < lag)[..., None], 0.0)
            out_BSD = torch.addcmul(out_BSD, shifted, weight_DW[:, start])
    return out_BSD if bias_D is None else out_BSD + bias_D.to(out_BSD.dtype)


class _LagSum(torch.autograd.Function):
    """`out[t] = sum over w of window[t + w] * weight[w]`, a block of tokens at a time so that it stays in a
    processor's cache."""

    @staticmethod
    def forward(ctx: Any, window: torch.Tensor, weight_WD: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(window, weight_WD)
        return _correlate(window, weight_WD)

    @staticmethod
    def backward(ctx: Any, dout_BSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        window, weight_WD = ctx.saved_tensors
        past = len(weight_WD) - 1
        # The gradient of a correlation is the correlation with the taps turned round, over all places that overlap.
        dwindow = _correlate(F.pad(dout_BSD, (0, 0, past, past)), weight_WD.flip(0))
        length = dout_BSD.shape[1]
        rows = [torch.zeros_like(weight_WD[0]) for _ in range(past + 1)]
        for start in range(0, length, _BLOCK):
            dout = dout_BSD[:, start : start + _BLOCK]
            for tap in range(past + 1):
                rows[tap] = rows[tap] + (dout * window[:, start + tap : start + tap + dout.shape[1]]).sum((0, 1))
        return dwindow, torch.stack(rows)


def _correlate(window: torch.Tensor, weight_WD: torch.Tensor) -> torch.Tensor:
    taps = len(weight_WD)
    length = window.shape[1] - taps + 1
    blocks = []
    for start in range(0, length, _BLOCK):
        stop = min(length, start + _BLOCK)
        out = window[:, start:stop] * weight_WD[0]
        for tap in range(1, taps):
            out = torch.addcmul(out, window[:, start + tap : stop + tap], weight_WD[tap])
        blocks.append(out)
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def _last_inputs(
    window: torch.Tensor, past: int, moved: Compaction | None, starts_BS: torch.Tensor | None
) -> torch.Tensor:
    length = window.shape[1] - past
    # A view would keep the whole window alive.
    state_BPD = window[:, length:].clone() if moved is None else _rows_at(window, moved.count_B, past)
    if starts_BS is None:
        return state_BPD
    # Nothing of the documents before the last one may be seen by the next call.
    position_S = torch.arange(length, device=window.device)
    # Padding stands behind the real tokens by now, and a start there means nothing.
    real_BS = position_S < length if moved is None else position_S < moved.count_B[:, None]
    begun_B1 = torch.where(starts_BS & real_BS, position_S, -past).amax(dim=1, keepdim=True)
    count_B1 = length if moved is None else moved.count_B[:, None]
    from_end_P = torch.arange(past, device=window.device) - past
    return state_BPD.masked_fill((count_B1 + from_end_P < begun_B1)[..., None], 0.0)


def _rows_at(window: torch.Tensor, first_B: torch.Tensor, count: int) -> torch.Tensor:
    index = first_B[:, None] + torch.arange(count, device=window.device)
    return window.gather(1, index[..., None].expand(-1, -1, window.shape[2]))
