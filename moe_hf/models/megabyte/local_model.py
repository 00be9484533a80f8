"""MegaByte's local model: a decoder over the places of each patch, which predicts its bytes.

Shapes: B batch, P bytes per patch, K patches, R bytes looked back at, W places of the current patch, L width of the
local decoder.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import MoeModelOutputWithPast

from moe_hf.config.megabyte import MegaByteWithMoEConfig
from moe_hf.layers.caches.megabyte import MegaByteCache


class LocalModel(nn.Module):
    """The half of MegaByte that reads places (Yu et al. 2023, section 2.2.3): bytes, plus the context of their patch.

    Attributes:
        local_decoder: reads them.
        local_start: stands where the first place of a patch has no byte before it; (L,).
    """

    config: MegaByteWithMoEConfig
    local_decoder: Any
    local_start: nn.Parameter

    def read_places(
        self,
        grid_BKP: torch.Tensor,
        before_BKR: torch.Tensor,
        absent_BK: torch.Tensor,
        context_BKPL: torch.Tensor,
        *,
        wanted: dict[str, bool],
    ) -> MoeModelOutputWithPast:
        """The local decoder on all places of all patches, those looked back at in front, (B * K, R + P, L).

        Args:
            grid_BKP: the bytes.
            before_BKR: the last bytes of the patch before.
            absent_BK: True where there is no patch before.
            context_BKPL: what the global model gives to the places.
            wanted: recordings, by keyword argument.
        """
        back = self.config.lookback
        bytes_BKWL = self.local_decoder.embed_tokens(torch.cat([before_BKR, grid_BKP[..., :-1]], dim=2))
        start = self.local_start.to(bytes_BKWL)
        if back:
            seen_BKRL = torch.where(absent_BK[..., None, None], start, bytes_BKWL[:, :, :back])
            bytes_BKWL = torch.cat([seen_BKRL, bytes_BKWL[:, :, back:]], dim=2)
        start_BK1L = start.expand(*grid_BKP.shape[:2], 1, -1)
        in_BKWL = torch.cat([start_BK1L, bytes_BKWL], dim=2) + nn.functional.pad(context_BKPL, (0, 0, back, 0))
        return self.local_decoder(inputs_embeds=in_BKWL.flatten(0, 1), use_cache=False, **wanted)

    def read_next_place(self, cache: MegaByteCache, wanted: dict[str, bool]) -> MoeModelOutputWithPast:
        """The local decoder at the place behind the last byte of each row, the last one of what it returns."""
        common, back = cache.common_phase, self.config.lookback
        # A state, unlike keys, cannot be hidden from the rows whose patch ended; and what is looked back at was read
        # in another place.
        lasting = not back and all(kind == "full_attention" for kind in self.local_decoder.config.layer_types or [])
        if common == 0 or (common is None and not lasting):
            cache.local_cache = None
        place_BW = cache.phase_B[:, None] + back
        if cache.local_cache is None:
            width = (int(cache.phase_B.max()) if common is None else common) + back + 1
            place_BW = place_BW - torch.arange(width - 1, -1, -1, device=place_BW.device)
            cache.local_cache = self.local_decoder.new_cache()
        columns = cache.trim_local(self.config.patch_size - 1 + back) + place_BW.shape[1]
        mask = None
        if common is None:
            mask = (torch.arange(columns, device=place_BW.device) >= columns - 1 - back - cache.phase_B[:, None]).long()
        known_BW = place_BW.clamp(min=0)
        bytes_BW = torch.cat([cache.before_BR, cache.tail_BP], dim=1).gather(1, (place_BW - 1).clamp(min=0))
        absent_BW = (place_BW <= 0) | ((place_BW <= back) & (cache.patch_B == 0)[:, None])
        bytes_BWL = self.local_decoder.embed_tokens(bytes_BW)
        bytes_BWL = torch.where(absent_BW[..., None], self.local_start.to(bytes_BWL), bytes_BWL)
        row_B1 = torch.arange(place_BW.shape[0], device=place_BW.device)[:, None]
        return self.local_decoder(
            inputs_embeds=bytes_BWL + nn.functional.pad(cache.context_BPL, (0, 0, back, 0))[row_B1, known_BW],
            attention_mask=mask,
            position_ids=known_BW,
            past_key_values=cache.local_cache,
            use_cache=True,
            **wanted,
        )
