"""MegaByte: a global model over patches of bytes gives context to a local model over the bytes of each patch.

Shapes: B batch, S bytes of this call, P bytes per patch, K patches, W places of the current patch, D width of the
global decoder, L width of the local one, E experts, k slots.
"""

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Cache, GenerationConfig, GenerationMixin
from transformers import initialization as init
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults

from moe_hf.base.errors import ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.config.megabyte import MegaByteWithMoEConfig
from moe_hf.layers.attention.packed_rows import positions_from, starts_unless_hindered
from moe_hf.layers.caches.host import CACHE_NAME, one_cache
from moe_hf.layers.caches.megabyte import MegaByteCache, real_bytes
from moe_hf.layers.caches.states import require_rows, unless_exporting
from moe_hf.layers.init import DrawsOwnWeights
from moe_hf.layers.patching import MegaBytePatching
from moe_hf.models.decoder import MoEDecoderModel, MoEPreTrainedModel
from moe_hf.models.heads import MoEForCausalLM, MoEForSequenceClassification
from moe_hf.models.keywords import refuse_unknown
from moe_hf.models.megabyte.global_model import GlobalModel
from moe_hf.models.megabyte.local_model import LocalModel
from moe_hf.models.megabyte.outputs import joined, recordings
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
        # Patches that were read cannot be cut back to a byte, so no assisted decoding.
        return True

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the patch embedder and the local configuration follow."""
        embedding = super().resize_token_embeddings(*args, **kwargs)
        model: Any = self.base_model
        size = embedding.num_embeddings
        model.patching.embedding = self._get_resized_embeddings(model.patching.embedding, size)
        self.config.local_decoder_config.vocab_size = size
        return embedding


class MegaByteWithMoEModel(MegaBytePreTrainedModel, GlobalModel, LocalModel, DrawsOwnWeights):
    """Bytes to the hidden states that predict the byte behind each (Yu et al. 2023, 2305.07185, section 2).

    The place of byte t in its patch is given the bytes of the patch before t, and the context that the global model
    makes of all earlier patches. What follows byte t is predicted at the place of byte t + 1, whose hidden state stands
    at t.
    """

    def __init__(self, config: MegaByteWithMoEConfig) -> None:
        super().__init__(config)
        global_config, local_config = config.global_config, config.local_decoder_config
        self.patching = MegaBytePatching(config.patch_size, config.hidden_size, config.vocab_size)
        self.global_decoder = PatchDecoder(global_config)
        self.to_local = nn.Linear(config.hidden_size // config.patch_size, local_config.hidden_size, bias=False)
        self.local_start = nn.Parameter(torch.empty(local_config.hidden_size))
        self.local_decoder = MoEDecoderModel(local_config)
        self.gradient_checkpointing = False
        self.post_init()

    def draw_weights(self, std: float, residual_std: float) -> None:
        """The context is as loud as the bytes: it is noise at first and would drown them if louder."""
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
        is given byte by byte, (B * S, E): of the place that predicts the next byte, and of the patch that gives it its
        context. Hidden states are the local decoder's, (B, S, L). Attentions are as they came, over patches, then
        within patches; a call that finishes no patch has none of the former.

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
        return self._read_bytes(input_ids, mask_BS, starts_BS, cache, wanted, last_only)

    def _read_bytes(
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
        context = self.context_of_patches(grid_BKP, layout, starts_BS is not None, cache, wanted)

        # Where the byte behind each is predicted.
        place_BU = torch.arange(layout.num_patches * size, device=ids.device).expand(batch, -1)
        place_BS = pick_up(place_BU.unflatten(1, (-1, size)), shape[1], layout, offset=1)[:, -length:]
        before_BKR, absent_BK = self._bytes_before(grid_BKP, layout, cache)
        if cache is not None:
            count = shape[1] if mask is None else mask.long().sum(dim=1)
            cache.remember(grid_BKP, before_BKR, context.context_BKPL, context.routing, length, count)
        row_B1 = torch.arange(batch, device=ids.device)[:, None]
        parts: tuple[torch.Tensor, ...] = (grid_BKP, before_BKR, absent_BK, context.context_BKPL)
        if last_only:
            place_BS = place_BS[:, -1:]
            parts = tuple(part[row_B1, place_BS // size] for part in parts)
        local = self.read_places(*parts, wanted=wanted)
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
            for name, layers in context.routing.items()
        }
        return joined(local, context.outputs, routing, cache, wanted, at_bytes, of_places)

    def _bytes_before(
        self, grid_BKP: torch.Tensor, layout: PatchLayout, cache: MegaByteCache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The last bytes of the patch before each, (B, K, R), and where there is no such patch."""
        if cache is None or not cache.seen:
            return last_of_patch_before(grid_BKP, self.config.lookback, None), layout.begins_BK
        absent_BK = torch.zeros_like(layout.begins_BK)
        absent_BK[:, 0] = cache.patch_B == 0
        return last_of_patch_before(grid_BKP, self.config.lookback, cache.before_BR), absent_BK

    def _next_byte(
        self, input_ids: torch.Tensor, cache: MegaByteCache, wanted: dict[str, bool]
    ) -> MoeModelOutputWithPast:
        """One real byte in every row: the global model reads only where it ends a patch."""
        cache.add_byte(input_ids)
        outputs = self.finish_patches(cache, wanted)
        local = self.read_next_place(cache, wanted)

        def last(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(0, (len(input_ids), -1))[:, -1]

        return joined(local, outputs, cache.routing, cache, wanted, lambda x: x[:, -1:], last)


class MegaByteWithMoE(MegaBytePreTrainedModel, MoEForCausalLM, GenerationMixin):
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
