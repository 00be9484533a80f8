"""Causal convolution with a filter as long as the sequence, exact under padding, packing and continuation.

Shapes: B batch, S positions of this call, P earlier positions, L lags, D channels, N real tokens of the batch, R rows
of one group, n positions of one group.
"""

from collections.abc import Sequence
from typing import NamedTuple, Unpack

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.ops.dtypes import float32_or_more
from moe_hf.ops.operators import opaque
from moe_hf.ops.sequence.contract import Edges, Layout, edges_of
from moe_hf.ops.sequence.fft_conv import ConvInputs, fft_conv, fft_conv_backward


def reference_long_conv(
    x_BSD: torch.Tensor,
    filter_LD: torch.Tensor,
    skip_D: torch.Tensor | None = None,
    *,
    history_BPD: torch.Tensor | None = None,
    **layout: Unpack[Layout],
) -> torch.Tensor:
    """`long_conv` token by token: the direct sum of Poli et al. 2023 (Hyena), section 2, in float32."""
    mask_BS, starts_BS = edges_of(**layout)
    batch = x_BSD.shape[0]
    dtype = float32_or_more(x_BSD)
    rows = []
    for row in range(batch):
        seen = [] if history_BPD is None else list(history_BPD[row].to(dtype).unbind(0))
        out = []
        for t, x_D in enumerate(x_BSD[row].to(dtype).unbind(0)):
            if starts_BS is not None and starts_BS[row, t]:
                seen = []
            if mask_BS is not None and not mask_BS[row, t]:
                out.append(torch.zeros_like(x_D))
                continue
            seen.append(x_D)
            lags = min(len(seen), len(filter_LD))
            y_D = (torch.stack(seen[::-1][:lags]) * filter_LD[:lags].to(dtype)).sum(0)
            out.append(y_D if skip_D is None else y_D + skip_D.to(dtype) * x_D)
        rows.append(torch.stack(out))
    return torch.stack(rows).to(x_BSD.dtype)


def long_conv(
    x_BSD: torch.Tensor,
    filter_LD: torch.Tensor,
    skip_D: torch.Tensor | None = None,
    *,
    history_BPD: torch.Tensor | None = None,
    **layout: Unpack[Layout],
) -> torch.Tensor:
    """`sum over lags of filter[lag] * x[t - lag] + skip * x[t]` within each document (Poli et al. 2023, Hyena, eq. 4).

    Through the FFT in float32 (float64 for float64 inputs), S log S. Padding is taken out and documents are laid into
    rows of their own first, so that nothing leaks and no lag counts a padded place. Under torch.compile it is one
    opaque operator; its gradient can be taken once.

    Args:
        x_BSD: the inputs, of any strides and float dtype.
        filter_LD: the filter of each channel by lag.
        skip_D: weight of the input itself, added to the filter's lag 0.
        history_BPD: the real inputs of earlier calls, right-aligned per row with zeros before (`extended_history`).
        **layout: as in `contract.Layout`; a document's tokens see neither those before its start nor the history.

    Returns:
        (B, S, D) in the dtype of `x_BSD`; 0 at padding.

    Raises:
        ConfigError: a document is longer than the filter.
    """
    if x_BSD.shape[1] == 0:
        return x_BSD.clone()
    return _long_conv(ConvInputs(x_BSD, filter_LD, skip_D, history_BPD), edges_of(**layout))


def extended_history(
    x_BSD: torch.Tensor,
    *,
    history_BPD: torch.Tensor | None = None,
    **layout: Unpack[Layout],
) -> torch.Tensor:
    """The history after this call, (B, P + S, D): real inputs of each row's last document, right-aligned, 0 before."""
    mask_BS, starts_BS = edges_of(**layout)
    all_BND = x_BSD if history_BPD is None else torch.cat([history_BPD, x_BSD.to(history_BPD.dtype)], dim=1)
    if mask_BS is None and starts_BS is None:
        return all_BND
    kept_BS = torch.ones_like(x_BSD[..., 0], dtype=torch.bool) if mask_BS is None else mask_BS.bool()
    kept_BP = kept_BS.new_ones(x_BSD.shape[0], all_BND.shape[1] - x_BSD.shape[1])
    if starts_BS is not None:
        document_BS = starts_BS.long().cumsum(1)
        kept_BS = kept_BS & (document_BS == document_BS[:, -1:])
        kept_BP = kept_BP & (document_BS[:, -1:] == 0)
    kept_BN = torch.cat([kept_BP, kept_BS], dim=1)
    # A stable sort moves what is dropped to the left and keeps the order of the rest.
    order_BN = kept_BN.long().argsort(dim=1, stable=True)
    dropped_BN1 = ~kept_BN.gather(1, order_BN)[..., None]
    # Not a product: padding may hold NaN.
    return all_BND.gather(1, order_BN[..., None].expand_as(all_BND)).masked_fill(dropped_BN1, 0)


class _Group(NamedTuple):
    """Documents of about the same length, each to be laid into a row of its own from the left."""

    # Where each token stands in the batch, and where it goes: row and position.
    place: tuple[torch.Tensor, torch.Tensor]
    seat: tuple[torch.Tensor, torch.Tensor]
    # How many rows there are, and of which length.
    shape: tuple[int, int]
    # For each row, the row of the batch whose history it continues.
    source: torch.Tensor | None

    def lay(self, x_BSD: torch.Tensor) -> torch.Tensor:
        """The group's tokens in their rows, (R, n, D), zeros behind them."""
        x_RnD = x_BSD.new_zeros(*self.shape, x_BSD.shape[-1])
        x_RnD[self.seat] = x_BSD[self.place]
        return x_RnD

    def put_back(self, out_BSD: torch.Tensor, out_RnD: torch.Tensor) -> None:
        """Write the group's tokens to their places in `out_BSD`."""
        out_BSD[self.place] = out_RnD[self.seat]

    def of(self, inputs: ConvInputs) -> ConvInputs:
        """The inputs of the group's rows; without a history where the documents begin here."""
        history_BPD = inputs.history_BPD
        history_RPD = None if self.source is None or history_BPD is None else history_BPD[self.source]
        return inputs._replace(x_BSD=self.lay(inputs.x_BSD), history_BPD=history_RPD)


def _groups(inputs: ConvInputs, edges: Edges) -> list[_Group] | None:
    """The documents by length; None where each row of the batch can be convolved as it stands.

    Raises:
        ConfigError: a document is longer than the filter.
    """
    x_BSD, filter_LD, _, history_BPD = inputs
    mask_BS, starts_BS = edges
    (batch, length, _), lags = x_BSD.shape, len(filter_LD)
    # Values may be looked at: to the compiler all of this is one operator.
    if mask_BS is not None and bool(mask_BS.all()):
        mask_BS = None
    # A start at the first token changes something only where there is a history to cut off.
    if starts_BS is not None and not bool((starts_BS if history_BPD is not None else starts_BS[:, 1:]).any()):
        starts_BS = None
    if mask_BS is None and starts_BS is None:
        _check_reach(history_BPD, [length] * batch, lags)
        return None
    real_BS = torch.ones_like(x_BSD[..., 0], dtype=torch.bool) if mask_BS is None else mask_BS.bool()
    document_BS = torch.zeros_like(real_BS, dtype=torch.long) if starts_BS is None else starts_BS.long().cumsum(1)
    # A row has at most `length` starts, so that no two rows share a number.
    row_offset = (length + 1) * torch.arange(batch, device=x_BSD.device)
    token = real_BS.flatten().nonzero().flatten()
    key, document, count = torch.unique_consecutive(
        (document_BS + row_offset[:, None]).flatten()[token], return_inverse=True, return_counts=True
    )
    column = torch.arange(len(token), device=token.device) - (count.cumsum(0) - count)[document]
    source = key // (length + 1)
    counts = count.tolist()
    # Number 0 of a row is the document that the history belongs to.
    continues = [history_BPD is not None and value % (length + 1) == 0 for value in key.tolist()]
    going_on = {row: n for row, n, goes_on in zip(source.tolist(), counts, continues, strict=True) if goes_on}
    _check_reach(history_BPD, [going_on.get(row, 0) for row in range(batch)], lags)
    _check_reach(None, counts, lags)
    # Lengths within a factor of two share a group: less than half of its rows is then empty.
    kinds = [(goes_on, n.bit_length()) for goes_on, n in zip(continues, counts, strict=True)]
    groups = []
    for kind in sorted(set(kinds)):
        members = [i for i, other in enumerate(kinds) if other == kind]
        row_of_document = count.new_full((len(counts),), -1)
        row_of_document[members] = torch.arange(len(members), device=count.device)
        row = row_of_document[document]
        chosen = row >= 0
        place = (token[chosen] // length, token[chosen] % length)
        shape = (len(members), max(counts[i] for i in members))
        groups.append(_Group(place, (row[chosen], column[chosen]), shape, source[members] if kind[0] else None))
    return groups


def _check_reach(history_BPD: torch.Tensor | None, lengths: Sequence[int], lags: int) -> None:
    """Raise where `lengths` new tokens per row, with what went before, need more than `lags`."""
    past = 0 if history_BPD is None else history_BPD.shape[1]
    longest = max(lengths, default=0)
    # Settles most calls without a look at the history, which may have zeros in front.
    if past + longest <= lags:
        return
    reach = longest
    if history_BPD is not None:
        # Zeros to the left of a row's first input are no inputs.
        is_input_BP = history_BPD.ne(0).any(-1)
        first = torch.where(is_input_BP.any(1), is_input_BP.int().argmax(1), past).tolist()
        reach = max(past - at + n for at, n in zip(first, lengths, strict=True))
    require_lags(reach, lags)


def require_lags(num_tokens: int, lags: int) -> None:
    """Do nothing where a filter of so many lags reaches over so many tokens.

    Raises:
        ConfigError: it does not.
    """
    if num_tokens > lags:
        raise ConfigError(
            f"a sequence of {num_tokens} tokens is longer than the filter, which has {lags}; shorten the sequence, or "
            "build the filter with a larger maximum length"
        )


def _forward(inputs: ConvInputs, edges: Edges) -> torch.Tensor:
    groups = _groups(inputs, edges)
    if groups is None:
        return fft_conv(inputs)
    out_BSD = torch.zeros_like(inputs.x_BSD)
    for group in groups:
        group.put_back(out_BSD, fft_conv(group.of(inputs)))
    return out_BSD


def _forward_shapes(inputs: ConvInputs) -> torch.Tensor:
    return torch.empty_like(inputs.x_BSD)


def _backward(dout_BSD: torch.Tensor, inputs: ConvInputs, edges: Edges) -> list[torch.Tensor]:
    """The gradients of the inputs; an empty tensor where one is absent."""
    groups = _groups(inputs, edges)
    if groups is None:
        return _present(fft_conv_backward(dout_BSD, inputs))
    total = [torch.zeros_like(tensor) for tensor in _present(inputs)]
    for group in groups:
        part = fft_conv_backward(group.lay(dout_BSD), group.of(inputs))
        group.put_back(total[0], part.x_BSD)
        total[1] += part.filter_LD
        if part.skip_D is not None:
            total[2] += part.skip_D
        if part.history_BPD is not None and group.source is not None:
            total[3].index_add_(0, group.source, part.history_BPD)
    return total


def _present(parts: ConvInputs) -> list[torch.Tensor]:
    """The parts, an empty tensor for each that is absent: operators return no None."""
    return [parts.x_BSD.new_empty(0) if part is None else part for part in parts]


def _backward_shapes(inputs: ConvInputs) -> list[torch.Tensor]:
    return [torch.empty_like(part) for part in _present(inputs)]


# How many groups there are, the data decide.
_long_conv = opaque(
    "long_conv",
    _forward,
    _forward_shapes,
    _backward,
    _backward_shapes,
    returns=("out_BSD",),
    gradients=ConvInputs._fields,
)
