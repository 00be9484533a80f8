"""What a Hyena layer keeps between calls: the inputs of its long convolutions, which grow with the text.

Importing this module makes the layer type "history" known to `DynamicCache(config=...)` and `StaticCache(config=...)`.
Shapes: B batch, S positions of this call, P earlier inputs, D channels, C channels of the short convolution, W taps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from transformers import Cache
from transformers.cache_utils import STATIC_LAYER_TYPE_MAPPING

from moe_hf.base.errors import ConfigError
from moe_hf.layers.cache import StateLayer, StaticStateLayer, states_of
from moe_hf.layers.growing_rows import GrowingRows
from moe_hf.ops.future_fill import Epoch, future_fill_step
from moe_hf.ops.long_conv import extended_history, long_conv, require_lags

# Inputs of the short convolution that stay at hand: as many tokens can be cut off again.
RECENT_INPUTS = 256
# Up to so many tokens at once are taken one by one: cheaper than a transform of everything before them.
MOST_STEPS = 16


class LongFilter(NamedTuple):
    """The filter of one long convolution.

    Attributes:
        number: which of the layer's convolutions, from 0.
        of: gives the first so many lags, (L, D).
        max_lags: lags that there are.
        skip_D: weight of the input itself.
    """

    number: int
    of: Callable[[int], torch.Tensor]
    max_lags: int
    skip_D: torch.Tensor


class History(ABC):
    """What the Hyena operator asks of its cache layer."""

    @abstractmethod
    def recent_inputs(self, count: int) -> torch.Tensor | None:
        """The last `count` real inputs of the short convolution, (B, count, C), zeros before the first."""

    @abstractmethod
    def keep_inputs(
        self,
        x_BSC: torch.Tensor,
        count: int,
        mask_BS: torch.Tensor | None,
        starts_BS: torch.Tensor | None,
        start: int = 0,
    ) -> None:
        """Remember inputs of the short convolution, of which the next ones need the last `count`.

        Those of one call may come in several parts, with `start` the position in the call at which a part begins.
        """

    @abstractmethod
    def convolve(
        self,
        x_BSD: torch.Tensor,
        long_filter: LongFilter,
        mask_BS: torch.Tensor | None,
        starts_BS: torch.Tensor | None,
    ) -> torch.Tensor:
        """`long_conv` behind all earlier inputs of the same convolution, which these then join."""


class HistoryLayer(StateLayer, History):
    """Grows with the text; its end can be cut off again, so that assisted decoding works."""

    _layer_type = "history"
    is_croppable = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._inputs: dict[int, GrowingRows] = {}
        self._epochs: dict[int, Epoch] = {}
        self._recent = GrowingRows(keep=RECENT_INPUTS)
        # (B, n, 1) of all tokens; nothing as long as all are real.
        self._real = GrowingRows()
        self._oldest_cut = 0
        self._inputs_needed = 0

    def recent_inputs(self, count: int) -> torch.Tensor | None:
        """As in History."""
        recent = self._recent.read()
        return None if recent is None else _last(recent, count)

    def keep_inputs(
        self,
        x_BSC: torch.Tensor,
        count: int,
        mask_BS: torch.Tensor | None,
        starts_BS: torch.Tensor | None,
        start: int = 0,
    ) -> None:
        """As in History; notes as well which tokens are real, for `crop`."""
        seen, length = self.cumulative_length + start, x_BSC.shape[1]
        self._inputs_needed = count
        if mask_BS is not None or self._real.read() is not None:
            if self._real.read() is None and seen:
                self._real.append(torch.ones(len(x_BSC), seen, 1, dtype=torch.bool, device=x_BSC.device))
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
            self._recent.replace(extended_history(x_BSC, history_BPD=recent, mask_BS=mask_BS, starts_BS=starts_BS))

    def convolve(
        self,
        x_BSD: torch.Tensor,
        long_filter: LongFilter,
        mask_BS: torch.Tensor | None,
        starts_BS: torch.Tensor | None,
    ) -> torch.Tensor:
        """As in History; few tokens without a gradient go through FutureFill."""
        index = long_filter.number
        rows = self._inputs.setdefault(index, GrowingRows())
        plain = mask_BS is None and starts_BS is None
        if plain and x_BSD.shape[1] <= MOST_STEPS and not torch.is_grad_enabled():
            return self._step(x_BSD, long_filter, rows)
        past = rows.read()
        lags = min(len(rows) + x_BSD.shape[1], long_filter.max_lags)
        layout = {"history_BPD": past, "mask_BS": mask_BS, "starts_BS": starts_BS}
        out_BSD = long_conv(x_BSD, long_filter.of(lags), long_filter.skip_D, **layout)
        if plain:
            rows.append(x_BSD)
        else:
            rows.replace(_without_empty_front(extended_history(x_BSD, **layout)))
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
        if self.states:
            super().crop(tokens_to_remove)
        real_BS1 = self._real.read()
        removed_B = None if real_BS1 is None else real_BS1[:, -count:, 0].sum(1)
        self._require_recent(count if removed_B is None else int(removed_B.max()), count)
        everything = [self._recent, *self._inputs.values()]
        if removed_B is None or bool((removed_B == count).all()):
            for rows in everything:
                rows.cut(count)
            # An epoch stays right as long as no input before its start is gone.
            self._epochs = {i: epoch for i, epoch in self._epochs.items() if epoch.start <= len(self._inputs[i])}
        else:
            for rows in everything:
                rows.shift(removed_B)
            self._epochs = {}
        self._real.cut(count)
        self.cumulative_length -= count

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._inputs, self._epochs = {}, {}
        self._recent, self._real = GrowingRows(keep=RECENT_INPUTS), GrowingRows()
        self._oldest_cut = 0

    def change_states(self, change: Any) -> None:
        """As in NamedStates, for all that is kept."""
        super().change_states(change)
        for rows in (self._recent, self._real, *self._inputs.values()):
            rows.change(change)
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
        for x_B1D in x_BSD.split(1, dim=1):
            rows.append(x_B1D)
            inputs_BPD = cast(torch.Tensor, rows.read())
            y_BD, self._epochs[index] = future_fill_step(
                inputs_BPD, long_filter.of, long_filter.max_lags, long_filter.skip_D, epoch=self._epochs.get(index)
            )
            out.append(y_BD)
        return torch.stack(out, dim=1)

    def _require_recent(self, removed: int, count: int) -> None:
        if self.cumulative_length - count < self._oldest_cut:
            raise ConfigError(
                f"{count} tokens can't be cut off: they reach into the document before the last of packed rows, which "
                "is not kept; give the documents in rows of their own"
            )
        # The short convolution must still see the tokens before the cut.
        if self._recent.dropped and len(self._recent) - removed < self._inputs_needed:
            raise ConfigError(
                f"{count} tokens can't be cut off: only about {RECENT_INPUTS} of a Hyena layer can; start again with "
                "an empty cache"
            )


class StaticHistoryLayer(StaticStateLayer, History):
    """The same with room for `max_cache_len` tokens that stays in its place; tokens of a row lie from the left."""

    _layer_type = None

    def __init__(self, max_cache_len: int = 0, **kwargs: Any) -> None:
        super().__init__(max_cache_len=max_cache_len, **kwargs)
        self._filters: dict[int, torch.Tensor] = {}

    def recent_inputs(self, count: int) -> torch.Tensor | None:
        """As in History."""
        return self.read("recent")

    def keep_inputs(
        self,
        x_BSC: torch.Tensor,
        count: int,
        mask_BS: torch.Tensor | None,
        starts_BS: torch.Tensor | None,
        start: int = 0,
    ) -> None:
        """As in History."""
        layout = {"history_BPD": self.read("recent"), "mask_BS": mask_BS, "starts_BS": starts_BS}
        self.write("recent", _last(extended_history(x_BSC, **layout), count))

    def convolve(
        self,
        x_BSD: torch.Tensor,
        long_filter: LongFilter,
        mask_BS: torch.Tensor | None,
        starts_BS: torch.Tensor | None,
    ) -> torch.Tensor:
        """As in History; one token costs a dot product over the whole room."""
        index, (batch, length, width) = long_filter.number, x_BSD.shape
        names = f"inputs_{index}", f"count_{index}"
        if self.read(names[0]) is None:
            # The last place is where padding goes.
            self.write(names[0], x_BSD.new_zeros(batch, self.max_cache_len + 1, width))
            self.write(names[1], torch.zeros(batch, dtype=torch.long, device=x_BSD.device))
            self._filters[index] = long_filter.of(min(self.max_cache_len, long_filter.max_lags)).contiguous()
        room, count_B = (cast(torch.Tensor, self.read(name)) for name in names)
        out_BSD = None
        if length > 1:
            history_BPD = _right_aligned(room, count_B)
            layout = {"history_BPD": history_BPD, "mask_BS": mask_BS, "starts_BS": starts_BS}
            out_BSD = long_conv(x_BSD, self._filters[index], long_filter.skip_D, **layout)
        place_BS, new_count_B = self._places(count_B, x_BSD, mask_BS, starts_BS)
        # Elsewhere the number would have to be waited for.
        if not torch.compiler.is_compiling() and new_count_B.device.type == "cpu":
            self._require_room(int(new_count_B.max()))
            require_lags(int(new_count_B.max()), long_filter.max_lags)
        if starts_BS is not None:
            room.masked_fill_(starts_BS.any(1)[:, None, None], 0)
        room.scatter_(1, place_BS[..., None].expand(-1, -1, width), x_BSD.detach())
        count_B.copy_(new_count_B)
        if out_BSD is None:
            out_BSD = _dot_with_room(x_BSD, room, place_BS, self._filters[index], long_filter.skip_D)
        return out_BSD

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._filters = {}

    def _require_room(self, num_tokens: int) -> None:
        if num_tokens > self.max_cache_len:
            raise ConfigError(
                f"a sequence of {num_tokens} tokens does not fit into a static cache with max_cache_len="
                f"{self.max_cache_len}; make it larger, or use a dynamic one"
            )

    def _places(
        self,
        count_B: torch.Tensor,
        x_BSD: torch.Tensor,
        mask_BS: torch.Tensor | None,
        starts_BS: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where in the room each token goes, (B, S), and how many each row then has."""
        kept_BS = torch.ones_like(x_BSD[..., 0], dtype=torch.bool) if mask_BS is None else mask_BS.bool()
        before_B = count_B
        if starts_BS is not None:
            document_BS = starts_BS.long().cumsum(1)
            kept_BS = kept_BS & (document_BS == document_BS[:, -1:])
            before_B = torch.where(starts_BS.any(1), 0, count_B)
        place_BS = before_B[:, None] + kept_BS.long().cumsum(1) - 1
        return torch.where(kept_BS, place_BS, self.max_cache_len), before_B + kept_BS.sum(1)


STATIC_LAYER_TYPE_MAPPING["history"] = StaticHistoryLayer


def history_of(cache: Cache | None, layer_idx: int) -> History | None:
    """Where a Hyena layer keeps its history; None without a cache.

    Raises:
        ConfigError: the cache was made without the model's configuration and has no place for it.
    """
    return cast(History | None, states_of(cache, layer_idx))


def _last(x_BnC: torch.Tensor, count: int) -> torch.Tensor:
    """The last `count` entries, zeros before the first."""
    missing = count - x_BnC.shape[1]
    if missing <= 0:
        return x_BnC[:, x_BnC.shape[1] - count :]
    return torch.nn.functional.pad(x_BnC, (0, 0, missing, 0))


def _without_empty_front(history_BPD: torch.Tensor) -> torch.Tensor:
    """The history without the zeros that all rows have before their first input."""
    is_input_P = history_BPD.detach().ne(0).any(-1).any(0)
    first = int(is_input_P.int().argmax()) if bool(is_input_P.any()) else len(is_input_P)
    return history_BPD[:, first:]


def _right_aligned(room: torch.Tensor, count_B: torch.Tensor) -> torch.Tensor | None:
    """The first `count_B` entries of each row at the right end, zeros before them; None where there are none."""
    longest = room.shape[1] - 1 if torch.compiler.is_compiling() else int(count_B.max())
    if longest == 0:
        return None
    source_BP = torch.arange(longest, device=room.device) - (longest - count_B)[:, None]
    rows = room.gather(1, source_BP.clamp(min=0)[..., None].expand(-1, -1, room.shape[2]))
    return rows.masked_fill((source_BP < 0)[..., None], 0)


def _dot_with_room(
    x_B1D: torch.Tensor,
    room: torch.Tensor,
    place_B1: torch.Tensor,
    filter_LD: torch.Tensor,
    skip_D: torch.Tensor,
) -> torch.Tensor:
    """The outputs at one new token per row, whose input already lies at `place_B1`; arbitrary at padding."""
    inputs_BLD = room[:, : len(filter_LD)].to(filter_LD.dtype)
    lag_BL = place_B1 - torch.arange(len(filter_LD), device=room.device)
    # Beyond the newest input there are zeros, so that any lag will do there.
    weight_BLD = filter_LD[lag_BL.clamp(min=0, max=len(filter_LD) - 1)]
    out_B1D = (inputs_BLD * weight_BLD).sum(1, keepdim=True)
    return (out_B1D + skip_D.to(out_B1D.dtype) * x_B1D.to(out_B1D.dtype)).to(x_B1D.dtype)
