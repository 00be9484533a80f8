"""The skeleton of every decoder: embedding, layers made of a mixer and a feed-forward network, final norm.

Shapes: B batch, S positions of this call, D width, E experts; V vocabulary, K experts per token.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from moe_hf.base.errors import ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.attention.backends import resolve_attn_implementation
from moe_hf.layers.attention.positions import RotaryEmbedding, Rotation
from moe_hf.layers.attention.rope_types import RopeFrequencies
from moe_hf.layers.caches.host import CACHE_NAMES, as_option, named, one_cache
from moe_hf.layers.caches.routed import RoutedCache
from moe_hf.layers.caches.states import advance, claim_layer_types, unless_exporting
from moe_hf.layers.ffn import make_ffn
from moe_hf.layers.ffn.base import FFN
from moe_hf.layers.ffn.capacity import CapacityLimit
from moe_hf.layers.ffn.routers import HashRouter, LearnedRouter, LoadLearner, Router
from moe_hf.layers.init import DrawsOwnWeights
from moe_hf.layers.inputs import LayerInputs
from moe_hf.layers.mixers import MIXERS
from moe_hf.layers.mixers.base import Mixer
from moe_hf.layers.norms import make_norm
from moe_hf.layers.pickling import PicklesWithoutRecorder
from moe_hf.models.adapter_states import router_states_in, save_states_with_adapters
from moe_hf.models.dense.loading import LoadsDense
from moe_hf.models.hub_card import PushesCard
from moe_hf.models.inputs import Given, layer_inputs
from moe_hf.models.keywords import refuse_unknown
from moe_hf.models.parameter_kinds import IN_FLOAT32, KnowsParameterKinds

# What these kinds of layers keep can be cut back to an earlier token.
_CUT_BACK = ("full_attention", "history")


class DecoderLayer(PicklesWithoutRecorder, GradientCheckpointingLayer):
    """A mixer, then a feed-forward network, or one of the two; each has a norm and is added to the residual stream.

    The norms have the names that they have in most models, which norm what goes in: with `norm_placement="behind"`
    `input_layernorm` norms what the mixer gives, and `post_attention_layernorm` what the feed-forward network gives.
    """

    def __init__(self, config: MoEDecoderConfig, layer_idx: int) -> None:
        super().__init__()
        mixer, ffn = config.mixer_of_layer[layer_idx], config.ffn_of_layer[layer_idx]
        self.input_layernorm = None if mixer == "none" else make_norm(config)
        self.mixer = None if mixer == "none" else MIXERS[mixer](config, layer_idx)
        self.post_attention_layernorm = None if ffn == "none" else make_norm(config)
        self.mlp = None if ffn == "none" else make_ffn(config, layer_idx)
        self.dropout = nn.Dropout(config.resid_dropout)
        self._norms_behind = config.norm_placement == "behind"
        self._multiplier = config.residual_multiplier

    # Without a default: a mask that keeps attention from the future, and rotary positions, come with the inputs.
    def forward(self, x_BSD: torch.Tensor, inputs: LayerInputs) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """The residual stream after this layer, same shape.

        A layer whose mixer gives a `first_value` for the later layers returns it as well. It is returned, not left
        somewhere: what wraps a layer (offloading, sharding, recomputing) sees a layer's arguments and its result alone.
        """
        first_value = None
        if self.mixer is not None:
            norm = cast(nn.Module, self.input_layernorm)
            mixed_BSD, _, first_value = self.mixer(x_BSD if self._norms_behind else norm(x_BSD), inputs)
            x_BSD = x_BSD + self._added(mixed_BSD, norm)
        if self.mlp is not None:
            norm = cast(nn.Module, self.post_attention_layernorm)
            x_BSD = x_BSD + self._added(self.mlp(x_BSD if self._norms_behind else norm(x_BSD), inputs), norm)
        return x_BSD if first_value is None else (x_BSD, first_value)

    def _added(self, out_BSD: torch.Tensor, norm: nn.Module) -> torch.Tensor:
        """What a sublayer's output adds to the residual stream."""
        if self._norms_behind:
            out_BSD = norm(out_BSD)
        # Asked of the module itself: who samples with dropout (Gal and Ghahramani 2016) turns on these alone.
        if self.dropout.training:
            out_BSD = self.dropout(out_BSD)
        # No pass over the stream, and no rounding, where nothing is scaled.
        return out_BSD if self._multiplier == 1 else out_BSD * self._multiplier


class MoEPreTrainedModel(KnowsParameterKinds, PicklesWithoutRecorder, PushesCard, LoadsDense):
    """What all families tell transformers about themselves, and how fresh weights are drawn.

    transformers' `PreTrainedModel` comes with its bases.
    """

    config: MoEDecoderConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    # device_map must not cut a layer in two: its residual stream would change devices in between.
    _no_split_modules: ClassVar[list[str]] = ["DecoderLayer"]
    # accelerate's hooks move what a module is given to its device; a cache lies on the devices of all layers.
    _skip_keys_device_placement: ClassVar[list[str]] = [*CACHE_NAMES]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # transformers hooks the modules of these classes, and takes the entry of that index of what they return.
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "router_logits": OutputRecorder(Router, index=0),
        "router_experts": OutputRecorder(Router, index=2),
        "router_dropped": OutputRecorder(CapacityLimit, index=2),
        "hidden_states": DecoderLayer,
        "attentions": OutputRecorder(Mixer, index=1),
    }

    # In half precision the small steps of the first two would be lost.
    _keep_in_fp32_modules_strict: ClassVar[set[str]] = {"e_score_correction_bias", "score_threshold", *IN_FLOAT32}

    # transformers finds these two out by searching the model's own source file for words that stand in layers/ here.
    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return True

    # transformers decides this one by looking for "rwkv", "minimax", ... in the name of the class.
    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return True

    @property
    def _is_stateful(self) -> bool:
        # A state that cannot be cut back rules out assisted decoding, which generate then refuses by name.
        counts = self.config.router_eval_capacity_factor is not None
        return counts or any(kind not in _CUT_BACK for kind in self.config.layer_types or [])

    def _check_and_adjust_attn_implementation(
        self, attn_implementation: str | None, is_init_check: bool = False, allow_all_kernels: bool = False
    ) -> str:
        check = super()._check_and_adjust_attn_implementation
        return resolve_attn_implementation(
            attn_implementation,
            lambda name: check(name, is_init_check=is_init_check, allow_all_kernels=allow_all_kernels),
        )

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """The backend of the experts, by default "auto"."""
        if requested_experts is None:
            return "auto"
        if requested_experts == "grouped_mm":
            weight = next(self.parameters(), None)
            self.config.require_grouped_mm_widths(self.config.dtype if weight is None else weight.dtype)
        return super().get_correct_experts_implementation(requested_experts)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers; the tables of hash routers follow: new ids get the hash's own experts."""
        embedding = super().resize_token_embeddings(*args, **kwargs)
        for router in self.modules():
            if isinstance(router, HashRouter) and router.expert_of_id is not None:
                table_VK, size = router.expert_of_id, self.config.vocab_size
                new_VK = router.hash_table(size)[len(table_VK) :].to(table_VK)
                router.expert_of_id = torch.cat([table_VK[:size], new_VK])
        return embedding

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch; peft asks for it before it saves an adapter, with which the routers' states belong."""
        save_states_with_adapters(self, router_states_in(self))
        return super().state_dict(*args, **kwargs)

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Callable = checkpoint, **kwargs: Any
    ) -> None:
        given = gradient_checkpointing_func.keywords if isinstance(gradient_checkpointing_func, partial) else {}
        if given.get("use_reentrant"):
            raise ConfigError(
                f"gradient checkpointing with use_reentrant={given['use_reentrant']} is not allowed; it must be False: "
                "the reentrant form records router logits that carry no gradient, and the balance loss would do nothing"
            )
        super()._set_gradient_checkpointing(enable, gradient_checkpointing_func, **kwargs)

    def _initialize_weights(self, module: nn.Module, is_custom_code: bool = False) -> None:
        # Outside transformers' own code it skips modules that hold no parameter themselves, such as DecoderLayer, lest
        # they draw loaded weights anew; the functions of `initialization` below see to that by themselves.
        super()._initialize_weights(module, is_custom_code=False)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        std = self.config.initializer_range
        # GPT-2 shrinks what is added to the residual stream, so that its variance does not grow with depth.
        residual_std = std / (2 * self.config.num_hidden_layers) ** 0.5
        if isinstance(module, DrawsOwnWeights):
            module.draw_weights(std, residual_std)
        elif isinstance(module, LearnedRouter):
            init.normal_(module.weight, mean=0.0, std=std)
            if isinstance(module, LoadLearner):
                init.constant_(module.state_E, module.fresh_state)
        elif isinstance(module, HashRouter) and module.expert_of_id is not None:
            init.copy_(module.expert_of_id, module.hash_table(len(module.expert_of_id)))
        elif isinstance(module, Mixer | FFN):
            for name, child in module.named_modules():
                if isinstance(child, nn.Linear) and name.rpartition(".")[2] in module.output_projections:
                    init.normal_(child.weight, mean=0.0, std=residual_std)


class MoEDecoderModel(MoEPreTrainedModel):
    """Token ids to hidden states; which mixer and which FFN a layer gets is looked up, never asked about."""

    def __init__(self, config: MoEDecoderConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        kind = config.position_embedding_type
        longest = config.max_position_embeddings
        self.embed_positions = nn.Embedding(longest, config.hidden_size) if kind == "learned" else None
        self.rotary = _rotary(config) if kind == "rotary" else None
        self.embed_norm = make_norm(config) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.embd_dropout)
        self.layers = nn.ModuleList([DecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = make_norm(config)
        self._attends = "attention" in config.mixer_of_layer
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """Hidden states after the final norm, and what was asked to be recorded.

        Args:
            input_ids: (B, S) vocabulary ids; exactly one of this and `inputs_embeds`.
            attention_mask: (B, past + S), nonzero at real tokens; or a ready (B, 1, S, keys) mask.
            position_ids: (B, S). Each restart begins a new document that sees none of the others (packed sequences); it
                is refused beside padding or a filled cache. Left out, they count the real tokens: padding moves none.
            past_key_values, cache: state of earlier calls, by either name.
            inputs_embeds: (B, S, D) in place of ids.
            use_cache: whether to return the state for the next call.
            **kwargs: `output_router_logits`, `output_hidden_states`, `output_attentions`; `seq_idx`, `cu_seqlens` or
                `cu_seq_lens_q` say where documents begin; the rest goes to attention.

        Raises:
            ConfigError: an argument cannot be honoured, or nothing reads its name though it holds more than a number.
        """
        # A head did this already; whoever calls the skeleton by itself may use either name too.
        past_key_values, kwargs = as_option(one_cache(cache, past_key_values), kwargs)
        refuse_unknown(kwargs, attends=self._attends)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                f"give exactly one of input_ids and inputs_embeds, got {'none' if input_ids is None else 'both'}"
            )
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        if self.config.embedding_multiplier != 1:
            inputs_embeds = inputs_embeds * self.config.embedding_multiplier
        if past_key_values is not None and self._recomputes:
            raise ConfigError(
                f"a cache ({type(past_key_values).__name__}) together with activation checkpointing is not allowed "
                "while training: layers would not write into it; turn one of the two off"
            )
        given = Given(inputs_embeds, attention_mask, position_ids, past_key_values, kwargs)
        inputs = layer_inputs(given, self.config, self._attends)
        if use_cache and past_key_values is None and not self._recomputes:
            inputs = inputs._replace(cache=self.new_cache())
        # Before any layer writes: a refused call must leave the cache as it was.
        for layer in self.layers:
            mixer = cast(Mixer | None, layer.mixer)
            if mixer is not None:
                mixer.require_room(inputs_embeds.shape[1], inputs)
        x_BSD, rotation = self._with_positions(inputs_embeds, inputs.position_ids)
        x_BSD = self.dropout(x_BSD if self.embed_norm is None else self.embed_norm(x_BSD))
        x_BSD = self._through_layers(x_BSD, inputs._replace(token_ids=input_ids, rotation=rotation, shared_values={}))
        # Once per call and after all layers: every mixer has read the same length.
        advance(inputs.cache, inputs_embeds.shape[1], inputs.padding_mask)
        # Router logits, hidden states and attentions are added by `capture_outputs` around this method, from what the
        # modules of `_can_record_outputs` returned.
        return MoeModelOutputWithPast(last_hidden_state=self.norm(x_BSD), **named(inputs.cache))

    def _through_layers(self, x_BSD: torch.Tensor, inputs: LayerInputs) -> torch.Tensor:
        for layer in self.layers:
            after = layer(x_BSD, inputs)
            if isinstance(after, tuple):
                x_BSD, first_value = after
                inputs = inputs._replace(first_value=first_value)
            else:
                x_BSD = after
        return x_BSD

    def new_cache(self) -> DynamicCache:
        """An empty cache with all the states that this model keeps between calls."""
        claim_layer_types()
        counts = self.config.router_eval_capacity_factor is not None
        return unless_exporting((RoutedCache if counts else DynamicCache)(config=self.config))

    @property
    def _recomputes(self) -> bool:
        return self.training and any(layer.gradient_checkpointing for layer in self.layers)

    def _with_positions(self, x_BSD: torch.Tensor, position_ids: Any) -> tuple[torch.Tensor, Rotation | None]:
        if self.rotary is not None:
            return x_BSD, self.rotary(position_ids, x_BSD.dtype)
        if self.embed_positions is None:
            return x_BSD, None
        limit = self.config.max_position_embeddings
        # Only where looking at the value is free; elsewhere the embedding itself complains.
        if position_ids.device.type == "cpu" and not torch.compiler.is_compiling() and position_ids.max() >= limit:
            raise ConfigError(
                f"position {int(position_ids.max())} is beyond max_position_embeddings={limit}; shorten the input, or "
                'train with a larger value or with position_embedding_type="rotary"'
            )
        return x_BSD + self.embed_positions(position_ids), None


def _rotary(config: MoEDecoderConfig) -> RotaryEmbedding:
    given, width, theta = config.rope_parameters, config.head_dim, config.rope_theta
    scaled = None if given is None else RopeFrequencies(given, width, theta, config.max_position_embeddings)
    return RotaryEmbedding(width, theta, scaled)
