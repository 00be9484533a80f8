"""MegaByte: a decoder over patches of bytes, and one over the bytes of each patch that it tells what came before.

Shapes: B batch, S bytes of this call, P bytes per patch, K patches, W places of the current patch, D width of the
global decoder, L width of the local one, E experts, k slots.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Cache, GenerationConfig
from transformers import initialization as init
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from moe_hf.base.errors import ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.megabyte import MegaByteWithMoEConfig
from moe_hf.layers.attention.packed_rows import positions_from, starts_unless_hindered
from moe_hf.layers.caches.host import CACHE_NAME, one_cache
from moe_hf.layers.caches.megabyte import MegaByteCache, Routing, real_bytes
from moe_hf.layers.caches.states import require_rows, unless_exporting
from moe_hf.layers.init import DrawsOwnWeights
from moe_hf.layers.patching import MegaBytePatching
from moe_hf.models.decoder import MoEDecoderModel, MoEPreTrainedModel
from moe_hf.models.heads import MoEForCausalLM, MoEForSequenceClassification
from moe_hf.models.keywords import refuse_unknown
from moe_hf.models.megabyte.outputs import ROUTING, Told, joined, recordings, routing_of
from moe_hf.ops.patching import PatchLayout, last_of_patch_before, lay_out, patch_layout, pick_up


class PatchDecoder(MoEDecoderModel):
    """A decoder over vectors: it has no vocabulary."""

    def __init__(self, config: MoEDecoderConfig) -> None:
        super().__init__(config)
        self.embed_tokens: Any = None


class MegaBytePreTrainedModel(MoEPreTrainedModel):
    """What the MegaByte classes tell transformers about themselves."""

    config: MegaByteWithMoEConfig
    # The layout of patches depends on how many bytes are real.
    _can_compile_fullgraph = False
    # The two decoders record for themselves.
    _can_record_outputs: ClassVar[dict[str, Any]] = {}

    @property
    def _is_stateful(self) -> bool:
        return True

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the patch embedder and the local configuration follow."""
        embedding = super().resize_token_embeddings(*args, **kwargs)
        model: Any = self.base_model
        size = embedding.num_embeddings
        model.patching.embedding = self._get_resized_embeddings(model.patching.embedding, size)
        self.config.local_decoder_config.vocab_size = size
        return embedding


class MegaByteWithMoEModel(MegaBytePreTrainedModel, DrawsOwnWeights):
    """Bytes to the hidden states that predict the byte behind each (Yu et al. 2023, 2305.07185, section 2).

    The place of byte t in its patch is given the bytes of the patch before t, and what the global decoder says about
    all earlier patches. What follows byte t is predicted at the place of byte t + 1, whose hidden state stands at t.
    """

    def __init__(self, config: MegaByteWithMoEConfig) -> None:
        super().__init__(config)
        global_config, local_config = config.global_config, config.local_decoder_config
        self.patching = MegaBytePatching(config.patch_size, config.hidden_size, config.vocab_size)
        self.global_decoder = PatchDecoder(global_config)
        self.to_local = nn.Linear(config.hidden_size // config.patch_size, local_config.hidden_size, bias=False)
        # Stands where the first place of a patch has no byte before it; (L,).
        self.local_start = nn.Parameter(torch.empty(local_config.hidden_size))
        self.local_decoder = MoEDecoderModel(local_config)
        self.gradient_checkpointing = False
        self.post_init()

    def draw_weights(self, std: float, residual_std: float) -> None:
        """What the global decoder says is as loud as the bytes: it is noise at first and would drown them if louder."""
        init.normal_(self.local_start, mean=0.0, std=std)
        init.normal_(self.to_local.weight, mean=0.0, std=std / self.to_local.in_features**0.5)

    def get_input_embeddings(self) -> nn.Module:
        """The bytes' vectors in the local decoder; those of the patch embedder are its own."""
        return self.local_decoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace what `get_input_embeddings` returns."""
        self.local_decoder.set_input_embeddings(value)

    def new_cache(self) -> MegaByteCache:
        """An empty cache with all the states that this model keeps between calls."""
        return unless_exporting(MegaByteCache(self.global_decoder.new_cache()))

    @can_return_tuple
    @merge_with_config_defaults
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        last_only: bool = False,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Hidden states (B, S, L) behind each byte, and what was asked to be recorded.

        Recorded are the global decoder's layers, then the local one's. Routers read patches and places; what they said
        is given byte by byte, (B * S, E): of the place that predicts the next byte, and of the patch that it is told
        about. Hidden states are the local decoder's, (B, S, L). Attentions are as they came, over patches, then within
        patches; a call that finishes no patch has none of the former.

        Args:
            input_ids: (B, S) ids of bytes.
            attention_mask: (B, past + S), nonzero at real bytes; padding may stand anywhere and moves no patch.
            position_ids: (B or 1, S). Each restart begins a new document, with a patch of its own, that sees none of
                the others (packed rows); no cache is returned then.
            past_key_values, cache: a `MegaByteCache` of earlier calls, by either name.
            inputs_embeds: not allowed.
            use_cache: whether to return the state for the next call.
            last_only: return what stands behind each row's last byte alone; the local decoder then reads one patch.
            **kwargs: `output_router_logits`, ...; `seq_idx` or `cu_seqlens` in place of `position_ids`.

        Raises:
            ConfigError: embeddings, a mask of another form, another cache, or a name that nothing reads were given.
        """
        refuse_unknown(kwargs, attends=False)
        cache = one_cache(cache, past_key_values)
        if input_ids is None or inputs_embeds is not None:
            raise ConfigError(
                "MegaByte embeds bytes twice, in patches and within them; give input_ids, no embeddings (got "
                f"{'no ids' if inputs_embeds is None else f'embeddings {tuple(inputs_embeds.shape)}'})"
            )
        if cache is not None and not isinstance(cache, MegaByteCache):
            given = type(cache).__name__
            raise ConfigError(f"MegaByte needs a MegaByteCache, got {given}; give none, or one from model.new_cache()")
        mask_BS = real_bytes(attention_mask, input_ids.shape[1])
        require_rows(cache, input_ids.shape[0])
        position_ids = positions_from(kwargs, position_ids, (input_ids.shape[0], input_ids.shape[1]))
        going_on = cache is not None and cache.seen > 0
        hindrance = None if cache is None else "a cache"
        starts_BS = starts_unless_hindered(position_ids, input_ids.shape[0], mask_BS, hindrance)
        if cache is None and use_cache and starts_BS is None:
            cache = self.new_cache()
        wanted = recordings(kwargs, self.config)
        if cache is not None and going_on and input_ids.shape[1] == 1 and mask_BS is None:
            return self._next_byte(input_ids, cache, wanted)
        return self._read(input_ids, mask_BS, starts_BS, cache, wanted, last_only)

    def _read(
        self,
        input_ids: torch.Tensor,
        mask_BS: torch.Tensor | None,
        starts_BS: torch.Tensor | None,
        cache: MegaByteCache | None,
        wanted: dict[str, bool],
        last_only: bool,
    ) -> MoeModelOutputWithPast:
        """Any number of bytes, all patches at once; those of an unfinished patch are read again with them."""
        (batch, length), size = input_ids.shape, self.config.patch_size
        ids, mask = (input_ids, mask_BS) if cache is None else cache.behind_tail(input_ids, mask_BS)
        shape = (batch, ids.shape[1])
        layout = patch_layout(size, shape, ids.device, mask_BS=mask, starts_BS=starts_BS)
        grid_BKP = lay_out(ids, size, layout)
        told = self._tell(grid_BKP, layout, starts_BS is not None, cache, wanted)

        # Where the byte behind each is predicted.
        place_BU = torch.arange(layout.num_patches * size, device=ids.device).expand(batch, -1)
        place_BS = pick_up(place_BU.unflatten(1, (-1, size)), shape[1], layout, offset=1)[:, -length:]
        known_BR, absent_BK = None, layout.begins_BK
        if cache is not None and cache.seen:
            known_BR, absent_BK = cache.before_BR, torch.zeros_like(absent_BK)
            absent_BK[:, 0] = cache.patch_B == 0
        before_BKR = last_of_patch_before(grid_BKP, self.config.lookback, known_BR)
        if cache is not None:
            count = shape[1] if mask is None else mask.long().sum(dim=1)
            cache.remember(grid_BKP, before_BKR, told.slices_BKPL, told.routing, length, count)
        row_B1 = torch.arange(batch, device=ids.device)[:, None]
        parts: tuple[torch.Tensor, ...] = (grid_BKP, before_BKR, absent_BK, told.slices_BKPL)
        if last_only:
            place_BS = place_BS[:, -1:]
            parts = tuple(part[row_B1, place_BS // size] for part in parts)
        local = self._places(*parts, wanted=wanted)
        places = size + self.config.lookback

        def at_bytes(x: torch.Tensor) -> torch.Tensor:
            x = x[:, places - size :]
            if last_only:
                return x[row_B1, place_BS % size]
            return pick_up(x.unflatten(0, (batch, -1)), shape[1], layout, offset=1)[:, -length:]

        def of_places(x: torch.Tensor) -> torch.Tensor:
            return at_bytes(x.unflatten(0, (-1, places))).flatten(0, 1)

        routing = {
            name: [x_BKE[row_B1, place_BS // size].flatten(0, 1) for x_BKE in layers]
            for name, layers in told.routing.items()
        }
        return joined(local, told.outputs, routing, cache, wanted, at_bytes, of_places)

    def _places(
        self,
        grid_BKP: torch.Tensor,
        before_BKR: torch.Tensor,
        absent_BK: torch.Tensor,
        slices_BKPL: torch.Tensor,
        *,
        wanted: dict[str, bool],
    ) -> MoeModelOutputWithPast:
        """The local decoder on all places of all patches, those looked back at in front, (B * K, R + P, L)."""
        back = self.config.lookback
        bytes_BKWL = self.local_decoder.embed_tokens(torch.cat([before_BKR, grid_BKP[..., :-1]], dim=2))
        start = self.local_start.to(bytes_BKWL)
        if back:
            seen_BKRL = torch.where(absent_BK[..., None, None], start, bytes_BKWL[:, :, :back])
            bytes_BKWL = torch.cat([seen_BKRL, bytes_BKWL[:, :, back:]], dim=2)
        start_BK1L = start.expand(*grid_BKP.shape[:2], 1, -1)
        in_BKWL = torch.cat([start_BK1L, bytes_BKWL], dim=2) + nn.functional.pad(slices_BKPL, (0, 0, back, 0))
        return self.local_decoder(inputs_embeds=in_BKWL.flatten(0, 1), use_cache=False, **wanted)

    def _tell(
        self,
        grid_BKP: torch.Tensor,
        layout: PatchLayout,
        packed: bool,
        cache: MegaByteCache | None,
        wanted: dict[str, bool],
    ) -> Told:
        """The global decoder on the patches that come before each patch of the grid."""
        going_on = cache is not None and cache.seen > 0
        if cache is not None and going_on:
            # What is said to the first patch of the grid is known; the others are said what it holds.
            vectors_BKD = self.patching(grid_BKP[:, :-1].flatten(1))
            position_BK = cache.patch_B[:, None] + layout.position_BK[:, 1:]
            real_BK = layout.real_BK[:, 1:]
        else:
            begins_BK = layout.begins_BK if layout.slot_BS is not None else None
            vectors_BKD = self.patching(grid_BKP.flatten(1), shift=True, begins=begins_BK)
            position_BK = layout.position_BK
            # The patch of start is there even where all bytes are padding.
            real_BK = layout.real_BK.clone()
            real_BK[:, 0] = True
        outputs = None
        if vectors_BKD.shape[1]:
            plain = layout.slot_BS is None
            hidden_BK = None if plain or packed else real_BK
            outputs = self._global_step(vectors_BKD, position_BK, hidden_BK, cache, wanted, plain and not going_on)
        slices: list[torch.Tensor] = []
        routing: Routing = {name: [] for name in ROUTING}
        if outputs is not None:
            slices.append(self._slices(outputs))
            routing = routing_of(outputs, grid_BKP.shape[0])
        if cache is not None and going_on:
            slices.insert(0, cache.slices_BPL[:, None])
            routing = cache.behind_known(routing)
        return Told(torch.cat(slices, dim=1), routing, outputs)

    def _global_step(
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

    def _slices(self, outputs: MoeModelOutputWithPast) -> torch.Tensor:
        told_BKD: Any = outputs.last_hidden_state
        return self.to_local(told_BKD.unflatten(-1, (self.config.patch_size, -1)))

    def _next_byte(
        self, input_ids: torch.Tensor, cache: MegaByteCache, wanted: dict[str, bool]
    ) -> MoeModelOutputWithPast:
        """One real byte in every row: the global decoder reads only where it ends a patch."""
        size, batch, common = self.config.patch_size, input_ids.shape[0], cache.common_phase
        cache.seen += 1
        cache.tail_BP = cache.tail_BP.scatter(1, cache.phase_B[:, None], input_ids)
        cache.phase_B = cache.phase_B + 1
        full_B = cache.phase_B == size
        outputs = None
        if bool(full_B.any()) if common is None else common + 1 == size:
            vectors_B1D = self.patching(cache.tail_BP)
            mask_B1 = full_B[:, None] if common is None else None
            outputs = self._global_step(vectors_B1D, cache.patch_B[:, None] + 1, mask_B1, cache, wanted)
            routing = {name: list(outputs.get(name) or ()) for name in ROUTING}
            cache.next_patches(full_B, self._slices(outputs)[:, 0], routing)
        if common is not None:
            cache.common_phase = (common + 1) % size
        local = self._next_place(cache, wanted)
        return joined(
            local,
            outputs,
            cache.routing,
            cache,
            wanted,
            lambda x: x[:, -1:],
            lambda x: x.unflatten(0, (batch, -1))[:, -1],
        )

    def _next_place(self, cache: MegaByteCache, wanted: dict[str, bool]) -> MoeModelOutputWithPast:
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
        row_B1 = torch.arange(len(place_BW), device=place_BW.device)[:, None]
        return self.local_decoder(
            inputs_embeds=bytes_BWL + nn.functional.pad(cache.slices_BPL, (0, 0, back, 0))[row_B1, known_BW],
            attention_mask=mask,
            position_ids=known_BW,
            past_key_values=cache.local_cache,
            use_cache=True,
            **wanted,
        )

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


class MegaByteWithMoE(MegaBytePreTrainedModel, MoEForCausalLM):
    """MegaByte with experts that predicts the next byte."""

    model_class = MegaByteWithMoEModel
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.local_decoder.embed_tokens.weight"}

    def __init__(self, config: MegaByteWithMoEConfig) -> None:
        super().__init__(config)
        self.lm_head = nn.Linear(config.local_decoder_config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any
    ) -> None:
        if (kind := generation_config.cache_implementation) not in (None, "dynamic"):
            raise ConfigError(f"cache_implementation={kind!r} is not allowed; leave it out, MegaByte has its own cache")
        if model_kwargs.get(CACHE_NAME) is None and generation_config.use_cache is not False:
            model_kwargs[CACHE_NAME] = self.model.new_cache()
        else:
            super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As in transformers; of a prompt, the hidden states behind its last byte will do where nothing is recorded."""
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return inputs if any(recordings(inputs, self.config).values()) else {**inputs, "last_only": True}


class MegaByteWithMoEForSequenceClassification(MegaBytePreTrainedModel, MoEForSequenceClassification):
    """MegaByte with experts that labels a sequence."""

    model_class = MegaByteWithMoEModel

    def __init__(self, config: MegaByteWithMoEConfig) -> None:
        super().__init__(config)
        self.score = nn.Linear(config.local_decoder_config.hidden_size, config.num_labels or 0, bias=False)
        self.post_init()
