"""The history of a Hyena layer with room that stays in its place, for compiled steps.

Shapes: B batch, S positions of this call, P earlier inputs, L lags, D channels, C channels of the short convolution.
"""

from typing import Any, cast

import torch

from moe_hf.base.errors import ConfigError
from moe_hf.layers.caches.history import History, LongFilter, last_entries, reach_of
from moe_hf.layers.caches.states import StaticStateLayer
from moe_hf.layers.inputs import LayerInputs
from moe_hf.ops.sequence.long_conv import extended_history, long_conv, require_lags


class StaticHistoryLayer(StaticStateLayer, History):
    """Room for `max_cache_len` tokens; those of a row's last document lie from the left.

    The filters are kept as well. They are made anew when their weights change, which a compiled step does not see.
    """

    # As in StaticStateLayer; `history_cache` enters it into the table of static caches.
    _layer_type = None

    def __init__(self, max_cache_len: int = 0, **kwargs: Any) -> None:
        super().__init__(max_cache_len=max_cache_len, **kwargs)
        self._filters: dict[int, torch.Tensor] = {}
        self._versions: dict[int, tuple[tuple[int, int], ...] | None] = {}

    def require_room(self, num_tokens: int, max_lags: int, inputs: LayerInputs) -> None:
        """As in History; for single tokens on the CPU only, since elsewhere the number would have to be waited for."""
        count_B = self.read("count_0")
        if torch.compiler.is_compiling() or (count_B is not None and count_B.device.type != "cpu" and num_tokens == 1):
            return
        longest = reach_of(0 if count_B is None else count_B, num_tokens, inputs).longest
        if longest > self.max_cache_len:
            raise ConfigError(
                f"a sequence of {longest} tokens does not fit into a static cache with max_cache_len="
                f"{self.max_cache_len}; make it larger, or use a dynamic one"
            )
        require_lags(longest, max_lags)

    def recent_inputs(self, count: int) -> torch.Tensor | None:
        """As in History."""
        return self.read("recent")

    def keep_inputs(self, x_BSC: torch.Tensor, count: int, inputs: LayerInputs, start: int = 0) -> None:
        """As in History."""
        layout = {"history_BPD": self.read("recent"), **inputs.layout}
        self.write("recent", last_entries(extended_history(x_BSC, **layout), count))

    def convolve(self, x_BSD: torch.Tensor, long_filter: LongFilter, inputs: LayerInputs) -> torch.Tensor:
        """As in History; one token costs a dot product over the whole room."""
        index, (batch, length, width) = long_filter.number, x_BSD.shape
        names = f"inputs_{index}", f"count_{index}"
        if self.read(names[0]) is None:
            # The last place is where padding goes.
            self.write(names[0], x_BSD.new_zeros(batch, self.max_cache_len + 1, width))
            self.write(names[1], torch.zeros(batch, dtype=torch.long, device=x_BSD.device))
        room, count_B = (cast(torch.Tensor, self.read(name)) for name in names)
        filter_LD = self._filter(long_filter)
        # Before the room takes them: the convolution gets the new inputs apart from those before.
        out_BSD = None
        if length > 1:
            layout = {"history_BPD": _right_aligned(room, count_B), **inputs.layout}
            out_BSD = long_conv(x_BSD, filter_LD, long_filter.skip_D, **layout)
        place_BS, new_count_B = self._places(count_B, x_BSD, inputs)
        if inputs.document_starts is not None:
            # Beyond the newest input there have to be zeros, for `_dot_with_room`.
            room.masked_fill_(inputs.document_starts.any(1)[:, None, None], 0)
        # Detached: memory that every call writes to cannot be part of a graph.
        room.scatter_(1, place_BS[..., None].expand(-1, -1, width), x_BSD.detach())
        count_B.copy_(new_count_B)
        if out_BSD is None:
            out_BSD = _dot_with_room(x_BSD, room, place_BS, filter_LD, long_filter.skip_D)
        return out_BSD

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._filters, self._versions = {}, {}

    def _filter(self, long_filter: LongFilter) -> torch.Tensor:
        """The filter's lags, kept from an earlier call where its weights are as they were."""
        index = long_filter.number
        kept = self._filters.get(index)
        if kept is not None and (long_filter.version is None or long_filter.version == self._versions[index]):
            return kept
        made = long_filter.of(min(self.max_cache_len, long_filter.max_lags)).contiguous()
        if kept is None or kept.requires_grad or made.requires_grad or kept.dtype != made.dtype:
            self._filters[index] = made
        else:
            # Compiled steps read the same memory.
            kept.copy_(made)
        self._versions[index] = long_filter.version
        return self._filters[index]

    def _places(
        self, count_B: torch.Tensor, x_BSD: torch.Tensor, inputs: LayerInputs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Where in the room each token goes, (B, S), and how many each row then has."""
        mask_BS, starts_BS = inputs.padding_mask, inputs.document_starts
        kept_BS = torch.ones_like(x_BSD[..., 0], dtype=torch.bool) if mask_BS is None else mask_BS.bool()
        before_B = count_B
        if starts_BS is not None:
            document_BS = starts_BS.long().cumsum(1)
            kept_BS = kept_BS & (document_BS == document_BS[:, -1:])
            before_B = torch.where(starts_BS.any(1), 0, count_B)
        place_BS = before_B[:, None] + kept_BS.long().cumsum(1) - 1
        return torch.where(kept_BS, place_BS, self.max_cache_len), before_B + kept_BS.sum(1)


def _right_aligned(room: torch.Tensor, count_B: torch.Tensor) -> torch.Tensor | None:
    """The first `count_B` entries of each row at the right end, zeros before them; None where there are none."""
    # A compiler cannot ask how many there are: it takes the whole room, with more zeros in front.
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
