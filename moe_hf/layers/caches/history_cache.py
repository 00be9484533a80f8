"""What a Hyena layer keeps between calls: the inputs of its long convolutions, which grow with the text.

Importing this module makes the layer type "history" known to `DynamicCache(config=...)` and `StaticCache(config=...)`.
Shapes: B batch, S positions of this call, P earlier inputs, D channels, C channels of the short convolution.
"""

from typing import Any, cast

import torch
from transformers import Cache

from moe_hf.base.errors import ConfigError
from moe_hf.layers.caches.growing_rows import GrowingRows
from moe_hf.layers.caches.history import History, LongFilter, last_entries, reach_of
from moe_hf.layers.caches.states import PADDING, StateLayer, add_layer_type, states_of
from moe_hf.layers.caches.static_history import StaticHistoryLayer
from moe_hf.layers.inputs import LayerInputs
from moe_hf.ops.sequence.future_fill import Epoch, future_fill_step
from moe_hf.ops.sequence.long_conv import extended_history, long_conv, require_lags

# Inputs of the short convolution that stay at hand: as many tokens can be cut off again.
RECENT_INPUTS = 256
# Up to so many tokens at once are taken one by one: cheaper than a transform of everything before them.
MOST_STEPS = 16
_UNUSABLE = "Layers before this one may be cut already, so that this cache must not be used any more"


class HistoryLayer(StateLayer, History):
    """Grows with the text; its end can be cut off again, so that assisted decoding works."""

    _layer_type = "history"
    is_croppable = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._begin()

    def _begin(self) -> None:
        self._inputs: dict[int, GrowingRows] = {}
        self._epochs: dict[int, Epoch] = {}
        self._versions: dict[int, tuple[tuple[int, int], ...] | None] = {}
        # Real tokens of each row's last document: a number as long as it is the same for all.
        self._count_B: torch.Tensor | int = 0
        self._recent = GrowingRows(keep=RECENT_INPUTS)
        # (B, n, 1) of all tokens; nothing as long as all are real.
        self._real = GrowingRows()
        self._oldest_cut = 0
        self._inputs_needed = 0

    def require_room(self, num_tokens: int, max_lags: int, inputs: LayerInputs) -> None:
        """As in History."""
        most = self._count_B if isinstance(self._count_B, int) else int(self._count_B.max())
        # What is real is asked for only near the end: elsewhere than on the CPU it would have to be waited for.
        if most + num_tokens > max_lags:
            require_lags(reach_of(self._count_B, num_tokens, inputs).longest, max_lags)

    def recent_inputs(self, count: int) -> torch.Tensor | None:
        """As in History."""
        recent = self._recent.read()
        return None if recent is None else last_entries(recent, count)

    def keep_inputs(self, x_BSC: torch.Tensor, count: int, inputs: LayerInputs, start: int = 0) -> None:
        """As in History; notes as well which tokens are real, for `crop`."""
        mask_BS, starts_BS = inputs.padding_mask, inputs.document_starts
        seen, length = self.cumulative_length + start, x_BSC.shape[1]
        self._inputs_needed = count
        last_B = reach_of(self._count_B, length, inputs).last_B
        # On the CPU, where later calls may look at it without waiting.
        self._count_B = last_B if isinstance(last_B, int) else last_B.cpu()
        if mask_BS is not None or self._real.read() is not None:
            if self._real.read() is None and seen:
                self._real.append(torch.ones(x_BSC.shape[0], seen, 1, dtype=torch.bool, device=x_BSC.device))
            real_BS = torch.ones_like(x_BSC[..., 0], dtype=torch.bool) if mask_BS is None else mask_BS.bool()
            self._real.append(real_BS[..., None])
        if starts_BS is not None and bool(starts_BS.any()):
            # What stood before the last document is gone.
            last_start = int(starts_BS.int().mul(torch.arange(1, length + 1, device=x_BSC.device)).max())
            self._oldest_cut = seen + last_start
        if mask_BS is None and starts_BS is None:
            self._recent.append(x_BSC)
        else:
            recent = self._recent.read()
            padding_B = None if mask_BS is None else (mask_BS == 0).sum(1)
            history_BPC = extended_history(x_BSC, history_BPD=recent, **inputs.layout)
            self._recent.replace(history_BPC, padding_B)

    def convolve(self, x_BSD: torch.Tensor, long_filter: LongFilter, inputs: LayerInputs) -> torch.Tensor:
        """As in History; few tokens without a gradient go through FutureFill."""
        index = long_filter.number
        rows = self._inputs.setdefault(index, GrowingRows())
        plain = inputs.padding_mask is None and inputs.document_starts is None
        if plain and x_BSD.shape[1] <= MOST_STEPS and not torch.is_grad_enabled():
            return self._step(x_BSD, long_filter, rows)
        past = rows.read()
        lags = min(len(rows) + x_BSD.shape[1], long_filter.max_lags)
        layout = {"history_BPD": past, **inputs.layout}
        out_BSD = long_conv(x_BSD, long_filter.of(lags), long_filter.skip_D, **layout)
        if plain:
            rows.append(x_BSD)
        else:
            rows.replace(extended_history(x_BSD, **layout))
            _drop_empty_front(rows)
            # Padding and starts move inputs within their rows, and an epoch's sums would stand at the wrong places.
            self._epochs.pop(index, None)
        return out_BSD

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens off the end, padding included.

        Args:
            tokens_to_remove: their number, as a negative one or 0.

        Raises:
            ConfigError: more tokens than can be, or the layer keeps other states as well.
            ValueError: the number is positive.
        """
        if tokens_to_remove > 0:
            raise ValueError(
                f"crop({tokens_to_remove}) is not allowed; give a negative number, to remove so many tokens"
            )
        count = min(-tokens_to_remove, self.cumulative_length)
        if count == 0:
            return
        if count == self.cumulative_length:
            self.reset()
            return
        # Other states cannot be cut back: this raises.
        if self.states.keys() - {PADDING}:
            super().crop(tokens_to_remove)
        real_BS1 = self._real.read()
        removed_B = None if real_BS1 is None else real_BS1[:, -count:, 0].sum(1)
        self._require_recent(count if removed_B is None else removed_B, count)
        everything = [self._recent, *self._inputs.values()]
        if removed_B is None or bool((removed_B == count).all()):
            for rows in everything:
                rows.cut(count)
            # An epoch stays right as long as no input before its start is gone.
            self._epochs = {i: epoch for i, epoch in self._epochs.items() if epoch.start <= len(self._inputs[i])}
        else:
            for rows in everything:
                rows.shift(removed_B)
            for rows in self._inputs.values():
                _drop_empty_front(rows)
            self._epochs = {}
        self._count_B = self._count_B - (count if removed_B is None else removed_B.cpu())
        padding_B = self.read(PADDING)
        if padding_B is not None and removed_B is not None:
            self.write(PADDING, padding_B - (count - removed_B).to(padding_B.device))
        self._real.cut(count)
        self.cumulative_length -= count

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._begin()

    def kept(self) -> list[torch.Tensor]:
        """As in NamedStates."""
        recent = self._recent.read()
        return [*super().kept(), *([] if recent is None else [recent])]

    def change_states(self, change: Any) -> None:
        """As in NamedStates, for all that is kept."""
        super().change_states(change)
        for rows in (self._recent, self._real, *self._inputs.values()):
            rows.change(change)
        if not isinstance(self._count_B, int):
            self._count_B = change(self._count_B)
        for index, epoch in self._epochs.items():
            if epoch.future_BED is not None:
                self._epochs[index] = epoch._replace(future_BED=change(epoch.future_BED))

    def offload(self) -> None:
        """Move what is kept to the CPU."""
        recent = self._recent.read()
        super().offload()
        self._home = None if recent is None else recent.device

    def _step(self, x_BSD: torch.Tensor, long_filter: LongFilter, rows: GrowingRows) -> torch.Tensor:
        index, out = long_filter.number, []
        if len(rows) + x_BSD.shape[1] > long_filter.max_lags:
            # The longest row may have been left out by a choice of rows.
            if _drop_empty_front(rows):
                self._epochs.pop(index, None)
            require_lags(len(rows) + x_BSD.shape[1], long_filter.max_lags)
        # An epoch holds sums made with the weights of its time.
        if self._versions.get(index) != long_filter.version:
            self._epochs.pop(index, None)
            self._versions[index] = long_filter.version
        for x_B1D in x_BSD.split(1, dim=1):
            rows.append(x_B1D)
            inputs_BPD = cast(torch.Tensor, rows.read())
            y_BD, self._epochs[index] = future_fill_step(
                inputs_BPD, long_filter.of, long_filter.max_lags, long_filter.skip_D, epoch=self._epochs.get(index)
            )
            out.append(y_BD)
        return torch.stack(out, dim=1)

    def _require_recent(self, removed_B: torch.Tensor | int, count: int) -> None:
        if self.cumulative_length - count < self._oldest_cut:
            raise ConfigError(
                f"{count} tokens can't be cut off: they reach into the document before the last of packed rows, which "
                f"is not kept; give the documents in rows of their own. {_UNUSABLE}"
            )
        # The short convolution must still see the tokens before the cut.
        if self._recent.dropped and self._recent.least_left(removed_B) < self._inputs_needed:
            raise ConfigError(
                f"{count} tokens can't be cut off: only about {RECENT_INPUTS} of a Hyena layer can; start again with "
                f"an empty cache. {_UNUSABLE}"
            )


add_layer_type("history", HistoryLayer, StaticHistoryLayer)


def history_of(cache: Cache | None, layer_idx: int) -> History | None:
    """Where a Hyena layer keeps its history; None without a cache.

    Raises:
        ConfigError: the cache was made without the model's configuration and has no place for it.
    """
    return cast(History | None, states_of(cache, layer_idx))


def _drop_empty_front(rows: GrowingRows) -> bool:
    """Take away the zeros that all rows have before their first input; returns whether there were any."""
    all_BPD = rows.read()
    if all_BPD is None:
        return False
    is_input_P = all_BPD.detach().ne(0).any(-1).any(0)
    first = int(is_input_P.int().argmax()) if bool(is_input_P.any()) else is_input_P.shape[0]
    if first:
        rows.replace(all_BPD[:, first:])
    return first > 0
