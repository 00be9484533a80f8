"""What stands on top of the skeleton: next-token prediction with router losses, and sequence classification.

Shapes: B batch, S positions, D width, V vocabulary, N labels.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin
from transformers.modeling_outputs import (
    MoeCausalLMOutputWithPast,
    MoeModelOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.utils.generic import can_return_tuple

from moe_hf.base.errors import ConfigError
from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.caches.host import CACHE_NAME, CACHE_NAMES, MAMBA_CACHE_NAME, named, one_cache
from moe_hf.layers.caches.states import claim_layer_types
from moe_hf.models.batching import require_pages
from moe_hf.models.decoder import MoEDecoderModel, MoEPreTrainedModel
from moe_hf.models.router_losses import BalanceWindow, RouterLosses, router_losses, share_of_batch
from moe_hf.ops.routing.balance import divisor

_RECORDED = ("hidden_states", "attentions")


@dataclass
class MoECausalLMOutput(MoeCausalLMOutputWithPast):
    """transformers' output with two more entries per sparse layer, recorded together with `router_logits`.

    `router_experts` holds the chosen experts, (B * S, K), before any were dropped; `router_dropped` the share of the
    slots that a capacity limit dropped, in [0, 1], empty where there is no limit. `cross_entropy` is given while
    training: the mean over this call's targets, without router losses and without a gradient.
    """

    router_experts: tuple[torch.Tensor, ...] | None = None
    router_dropped: tuple[torch.Tensor, ...] | None = None
    cross_entropy: torch.Tensor | None = None


class MoEHeadModel(MoEPreTrainedModel):
    """Base of the heads: when the router's losses are needed, and how they join the main loss.

    Attributes:
        model_class: what the head stands on; families set it.
        balance_window: counts of the current optimizer step, which whoever drives the steps resets between them
            (`moe_hf.training.balance.RouterStateCallback`); None lets each forward, over all ranks, stand by itself.
    """

    balance_window: BalanceWindow | None = None
    model_class: ClassVar[type[MoEPreTrainedModel]] = MoEDecoderModel

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """A head that names its model reads the same configuration, unless it names another."""
        if "model_class" in cls.__dict__ and "config_class" not in cls.__dict__:
            # transformers settles which configuration a class reads in its own `__init_subclass__`, so before that.
            cls.config_class = cls.model_class.config_class
        super().__init_subclass__(**kwargs)

    def _wants_router_losses(self, requested: bool | None, labels: torch.Tensor | None) -> bool:
        if requested is None and self.config.output_router_logits:
            return True
        if requested is not None:
            return requested
        # Left out, the weight of the balance loss is stored as None but reads as a number (`DerivedFields`).
        config: Any = self.config
        weighted = config.router_aux_loss_coef > 0 or config.router_z_loss_coef > 0
        # Balance is on while training unless both weights are 0: a default that is silently off collapses routers.
        return self.training and labels is not None and weighted

    def _outputs(
        self,
        record: bool,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
        inputs_embeds: torch.Tensor | None,
        use_cache: bool | None,
        **kwargs: Any,
    ) -> Any:
        """What the model under the head gives, with its routing where losses are made of that."""
        # By their names, under which hooks on the model look for them.
        return self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_router_logits=record,
            output_router_experts=record,
            output_router_dropped=record,
            **kwargs,
        )

    def _router_losses(self, outputs: MoeModelOutputWithPast, attention_mask: torch.Tensor | None) -> RouterLosses:
        return router_losses(outputs, self.config, attention_mask, self.training, self.balance_window)

    def _add_router_losses(
        self, loss: torch.Tensor, losses: RouterLosses | None, scale: torch.Tensor | float
    ) -> torch.Tensor:
        # In eval the loss is the task's alone, so that exp(eval_loss) is a perplexity.
        if losses is None or not self.training:
            return loss
        config: Any = self.config
        for coefficient, extra in (
            (config.router_aux_loss_coef, losses.balance),
            (config.router_z_loss_coef, losses.z),
        ):
            if extra is not None:
                loss = loss + torch.as_tensor(scale, device=loss.device) * coefficient * extra.to(loss.device)
        return loss


class MoEForCausalLM(MoEHeadModel, GenerationMixin):
    """Next-token prediction.

    Families name `GenerationMixin` among their own bases: only there transformers looks for it where a model brings its
    code along, and it would make a class of its own, which no pickle finds.
    """

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan: ClassVar[dict[str, str]] = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: MoEDecoderConfig) -> None:
        super().__init__(config)
        self.model = self.model_class(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # transformers guesses the loss from the class's name, and `GPT2WithMoE` does not contain "ForCausalLM".
        self.loss_type = "ForCausalLM"
        self.post_init()

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """As transformers', under `generate_batch` too; raises ConfigError for layers that have no paged cache."""
        require_pages(self.config)
        return super().init_continuous_batching(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with the cache under either of its names."""
        given = one_cache(*(kwargs.pop(name, None) for name in CACHE_NAMES))
        return super().generate(*args, **kwargs, **({} if given is None else named(given)))

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any
    ) -> None:
        given = model_kwargs.pop(CACHE_NAME, None)
        wanted = generation_config.cache_implementation or ""
        if wanted.startswith("offloaded") and set(self.config.layer_types or []) != {"full_attention"}:
            raise ConfigError(
                f"cache_implementation={wanted!r} is not allowed for layers that keep a state; leave it out: "
                "states are small"
            )
        # transformers hands the cache to a class with "mamba" in its name under another name.
        name = MAMBA_CACHE_NAME if "mamba" in type(self).__name__.lower() else CACHE_NAME
        if given is not None:
            model_kwargs[name] = given
        claim_layer_types()
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        cache = model_kwargs.pop(name, None)
        if cache is not None:
            counts = self.config.router_eval_capacity_factor is not None
            # What generate made by itself counts no slots; a cache that was given is the caller's.
            fresh = given is None and type(cache) is DynamicCache
            model_kwargs[CACHE_NAME] = self.model.new_cache() if counts and fresh else cache

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> MoECausalLMOutput:
        """Logits of the next token, and the loss when `labels` are given.

        While training, `loss` is cross-entropy + `router_aux_loss_coef` x balance + `router_z_loss_coef` x z; in eval
        it is cross-entropy alone. Labels that are all -100 give 0 and no gradient. `aux_loss` is the unscaled balance
        loss, 1.0 at perfect balance (see `router_balance_loss`); None where no router can be taught by it.

        Args:
            input_ids, attention_mask, position_ids, past_key_values, cache, inputs_embeds, use_cache: as in the
                skeleton.
            labels: (B, S), the input ids themselves (they are shifted here); -100 where no loss is wanted.
            output_router_logits: return one raw (B * S, E) tensor per sparse layer, `aux_loss`, and what
                `MoECausalLMOutput` adds. False leaves the router losses out of a training loss.
            logits_to_keep: how many of the last positions get logits, 0 for all; or their indices.
            **kwargs: `num_items_in_batch` and `shift_labels` for the loss; `output_hidden_states`, ...
        """
        targets = labels if labels is not None else kwargs.get("shift_labels")
        record = self._wants_router_losses(output_router_logits, targets)
        # The cache may come by either name; the model, which may be called without a head, asks as well.
        given = (input_ids, attention_mask, position_ids, one_cache(cache, past_key_values), inputs_embeds, use_cache)
        outputs = self._outputs(record, *given, **kwargs)
        # generate asks for the last position alone: logits of a whole prompt would be large, and nobody reads them.
        keep = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, keep, :])
        if self.config.logits_scaling != 1:
            logits = logits / self.config.logits_scaling

        losses = self._router_losses(outputs, attention_mask) if record else None
        loss = cross_entropy = None
        if targets is not None:
            loss, cross_entropy = self._losses(logits, labels, targets, losses, kwargs)
        return MoECausalLMOutput(
            loss=loss,
            aux_loss=None if losses is None else losses.balance,
            logits=logits,
            cross_entropy=cross_entropy,
            **_handed_on(outputs, *_RECORDED, "router_logits", "router_experts", "router_dropped"),
        )

    def _losses(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor | None,
        targets: torch.Tensor,
        router: RouterLosses | None,
        options: dict[str, Any],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The loss, and while training the cross-entropy in it, as a mean over the targets of this call."""
        shifted = options.get("shift_labels")
        # The head may lie on another device than labels, routers and counts.
        target_count = (targets[..., 1:] if shifted is None else shifted).ne(-100).sum().to(logits.device)
        num_items = options.pop("num_items_in_batch", None)
        if isinstance(num_items, torch.Tensor):
            num_items = num_items.to(logits.device)
        # Without a single target, a mean would be 0 / 0, and so would every gradient.
        num_items = divisor(target_count if num_items is None else num_items)
        loss = self.loss_function(
            logits, labels, vocab_size=self.config.vocab_size, num_items_in_batch=num_items, **options
        )
        # In eval `loss` is the same, and Trainer would gather whatever stands beside it.
        cross_entropy = loss.detach() * num_items / divisor(target_count) if self.training else None
        return self._add_router_losses(loss, router, share_of_batch(target_count, num_items)), cross_entropy


def _handed_on(outputs: MoeModelOutputWithPast, *names: str) -> dict[str, Any]:
    return {name: outputs.get(name) for name in (CACHE_NAME, *names)}


class MoEForSequenceClassification(MoEHeadModel):
    """A label for a sequence, read off its last real token."""

    # The loss is a mean over sequences, so Trainer must divide it by the accumulation steps; it concludes otherwise
    # from **kwargs in the signature of forward.
    accepts_loss_kwargs = False

    def __init__(self, config: MoEDecoderConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = self.model_class(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels or 0, bias=False)
        self.loss_type = "ForSequenceClassification"
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_router_logits: bool | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutputWithPast:
        """Logits (B, N) of the labels, and the loss when `labels` (B,) or (B, N) are given.

        The last real token is the last nonzero entry of `attention_mask`, else the last token that is not padding. The
        other arguments are those of `MoEForCausalLM.forward`.

        Raises:
            ConfigError: several sequences, no mask, and no `pad_token_id` to find their ends by.
        """
        record = self._wants_router_losses(output_router_logits, labels)
        # The cache may come by either name; the model, which may be called without a head, asks as well.
        given = (input_ids, attention_mask, position_ids, one_cache(cache, past_key_values), inputs_embeds, use_cache)
        outputs = self._outputs(record, *given, **kwargs)
        logits_BSN = self.score(outputs.last_hidden_state)
        last_B = self._last_token(input_ids, attention_mask, logits_BSN)
        logits_BN = logits_BSN[torch.arange(last_B.shape[0], device=last_B.device), last_B]
        loss = None
        if labels is not None:
            count = torch.ones_like(labels) if labels.is_floating_point() else labels.ne(-100)
            num_items = divisor(count.sum())
            # Read where labels are classes, whose mean over none would be 0 / 0.
            loss = self.loss_function(
                labels=labels, pooled_logits=logits_BN, config=self.config, num_items_in_batch=num_items
            )
            losses = self._router_losses(outputs, attention_mask) if record else None
            loss = self._add_router_losses(loss, losses, share_of_batch(count.sum(), num_items))
        return SequenceClassifierOutputWithPast(loss=loss, logits=logits_BN, **_handed_on(outputs, *_RECORDED))

    def _last_token(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, logits_BSN: torch.Tensor
    ) -> torch.Tensor:
        batch, length, _ = logits_BSN.shape
        pad = self.config.pad_token_id
        if attention_mask is not None and attention_mask.ndim == 2:
            real_BS = attention_mask[:, -length:] != 0
        elif input_ids is not None and pad is not None:
            real_BS = input_ids != pad
        elif batch == 1 or input_ids is None:
            return torch.full((batch,), length - 1, device=logits_BSN.device)
        else:
            raise ConfigError(
                f"pad_token_id=None cannot classify {batch} sequences at once; set config.pad_token_id or give an "
                "attention_mask"
            )
        position_S = torch.arange(length, device=logits_BSN.device)
        # The largest of these products is the last real position, wherever padding stands.
        return (position_S * real_BS.to(logits_BSN.device)).argmax(dim=-1)
