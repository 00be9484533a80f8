"""MegaByte's global model: a decoder over patches, which gives the places of each patch their context.

Shapes: B batch, P bytes per patch, K patches, D width of the global decoder, L width of the local one.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import MoeModelOutputWithPast

from moe_hf.base.errors import ConfigError
from moe_hf.config.megabyte import MegaByteWithMoEConfig
from moe_hf.layers.caches.megabyte import MegaByteCache, Routing
from moe_hf.layers.patching import MegaBytePatching
from moe_hf.models.megabyte.outputs import ROUTING, PatchContext, routing_of
from moe_hf.ops.patching import PatchLayout


class GlobalModel(nn.Module):
    """The half of MegaByte that reads patches (Yu et al. 2023, sections 2.2.1 and 2.2.2).

    Attributes:
        patching: embeds patches.
        global_decoder: reads them.
        to_local: from the part of a patch's vector that belongs to a place to the local decoder's width, (L, D / P).
    """

    config: MegaByteWithMoEConfig
    patching: MegaBytePatching
    global_decoder: Any
    to_local: nn.Linear

    def context_of_patches(
        self,
        grid_BKP: torch.Tensor,
        layout: PatchLayout,
        packed: bool,
        cache: MegaByteCache | None,
        wanted: dict[str, bool],
    ) -> PatchContext:
        """What the patches before each patch of a grid give to its places.

        Args:
            grid_BKP: the bytes.
            layout: how they came from rows.
            packed: whether documents begin within rows.
            cache: of earlier calls; what it holds is the context of the first patch of the grid.
            wanted: recordings, by keyword argument.
        """
        known, plain = cache if cache is not None and cache.seen else None, layout.slot_BS is None
        if known is not None:
            # The context of the first patch is known; those of the others come of what the grid holds.
            vectors_BKD = self.patching(grid_BKP[:, :-1].flatten(1))
            position_BK, real_BK = known.patch_B[:, None] + layout.position_BK[:, 1:], layout.real_BK[:, 1:]
        else:
            vectors_BKD = self.patching(grid_BKP.flatten(1), shift=True, begins=None if plain else layout.begins_BK)
            position_BK, real_BK = layout.position_BK, layout.real_BK.clone()
            # The patch of start is there even where all bytes are padding.
            real_BK[:, 0] = True
        contexts: list[torch.Tensor] = []
        routing: Routing = {name: [] for name in ROUTING}
        outputs = None
        if vectors_BKD.shape[1]:
            hidden_BK = None if plain or packed else real_BK
            outputs = self._read_patches(vectors_BKD, position_BK, hidden_BK, cache, wanted, plain and known is None)
            contexts, routing = [self._context(outputs)], routing_of(outputs, grid_BKP.shape[0])
        if known is not None:
            contexts, routing = [known.context_BPL[:, None], *contexts], known.behind_known(routing)
        return PatchContext(torch.cat(contexts, dim=1), routing, outputs)

    def finish_patches(self, cache: MegaByteCache, wanted: dict[str, bool]) -> MoeModelOutputWithPast | None:
        """Read the patches that are full, and begin the next ones in the cache; None where no row's is."""
        size, common = self.config.patch_size, cache.common_phase
        full_B = cache.phase_B == size
        outputs = None
        if bool(full_B.any()) if common is None else common == size:
            mask_B1 = full_B[:, None] if common is None else None
            outputs = self._read_patches(
                self.patching(cache.tail_BP), cache.patch_B[:, None] + 1, mask_B1, cache, wanted
            )
            routing = {name: list(outputs.get(name) or ()) for name in ROUTING}
            cache.next_patches(full_B, self._context(outputs)[:, 0], routing)
        return outputs

    def _read_patches(
        self,
        vectors_BKD: torch.Tensor,
        position_BK: torch.Tensor,
        real_BK: torch.Tensor | None,
        cache: MegaByteCache | None,
        wanted: dict[str, bool],
        plain: bool = False,
    ) -> MoeModelOutputWithPast:
        self._require_room(position_BK)
        mask_BK = real_BK
        if cache is not None:
            mask_BK = cache.add_columns(real_BK, *position_BK.shape)
            # Later calls may ask what the routers said about the current patch.
            wanted = {**wanted, **{f"output_{name}": True for name in ROUTING}}
        return self.global_decoder(
            inputs_embeds=vectors_BKD,
            attention_mask=None if mask_BK is None else mask_BK.long(),
            # Given none, attention need not look for documents.
            position_ids=None if plain else position_BK,
            past_key_values=None if cache is None else cache.global_cache,
            use_cache=cache is not None,
            **wanted,
        )

    def _context(self, outputs: MoeModelOutputWithPast) -> torch.Tensor:
        """(B, K, P, L): each place of a patch gets its own part of the patch's vector."""
        hidden_BKD: Any = outputs.last_hidden_state
        return self.to_local(hidden_BKD.unflatten(-1, (self.config.patch_size, -1)))

    def _require_room(self, position_BK: torch.Tensor) -> None:
        table = self.global_decoder.embed_positions
        if table is None or position_BK.device.type != "cpu" or torch.compiler.is_compiling():
            return
        if position_BK.max() >= table.num_embeddings:
            size, limit = self.config.patch_size, self.config.max_position_embeddings
            raise ConfigError(
                f"byte {int(position_BK.max()) * size} is beyond max_position_embeddings={limit}; shorten the input, "
                'or train with a larger value or with position_embedding_type="rotary"'
            )
