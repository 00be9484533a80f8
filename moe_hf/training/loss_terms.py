"""What a trainer adds to a model's loss: label smoothing, and the balance loss where the model is of transformers' own.

Those classes add their own balance loss to each micro-batch undivided: accumulating N trains with N times of it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from moe_hf.base.errors import ConfigError
from moe_hf.models.found_routers import LayerChoice
from moe_hf.models.heads import MoEHeadModel
from moe_hf.models.native_routers import NativeRouters
from moe_hf.models.router_losses import share_of_batch
from moe_hf.training.label_smoothing import label_smoothing_term


class LossTerms:
    """The terms of one model; each counts for a micro-batch as much as its share of the optimizer step's targets.

    Args:
        model: that is trained; it may be wrapped, as peft does. One of this package has its balance loss in its own.
        label_smoothing: share of the probability that is spread over all words, in [0, 1).
    """

    def __init__(self, model: nn.Module, label_smoothing: float = 0.0) -> None:
        own = any(isinstance(module, MoEHeadModel) for module in model.modules())
        self._label_smoothing = label_smoothing
        self._routers = None if own else NativeRouters(model)
        self._choices: list[LayerChoice] = []
        config: Any = getattr(model, "config", None)
        self._is_causal = getattr(model, "loss_type", None) == "ForCausalLM"
        # A configuration may ask for the loss in every forward: it would stand in evaluation, and beside the logits.
        self._asks = bool(self._routers) and getattr(config, "output_router_logits", False)

    @contextmanager
    def watching(self, inputs: dict[str, Any], training: bool) -> Iterator[None]:
        """Around the forward of a micro-batch: records the routers of transformers' own models.

        Their inputs are told to leave the model's own balance loss out. A model of this package needs neither.
        """
        if self._asks:
            inputs["output_router_logits"] = False
        if not (self._routers and training):
            yield
            return
        with self._routers.recording() as self._choices:
            yield

    def added(
        self,
        loss: torch.Tensor,
        outputs: Any,
        inputs: Mapping[str, Any],
        num_items_in_batch: Any,
        processes: int,
    ) -> tuple[torch.Tensor, Any]:
        """The loss with the terms, and the outputs with the routing, of the last forward.

        Args:
            loss: of the micro-batch.
            outputs: of the model.
            inputs: of the model, with "labels".
            num_items_in_batch: targets of the whole optimizer step; None where the loss is a mean by itself.
            processes: that average their gradients, each of which knows the targets of all.
        """
        # Trainer multiplies the loss by them, to undo the mean.
        factor = processes if num_items_in_batch is not None else 1
        if self._label_smoothing:
            term = label_smoothing_term(outputs["logits"], inputs["labels"], num_items_in_batch)
            loss = loss + factor * self._label_smoothing * term
        choices, self._choices = self._choices, []
        labels = inputs.get("labels")
        if self._routers is None or not choices or labels is None:
            return loss, outputs
        taught = any(choice.logits_TE.requires_grad for choice in choices)
        if loss.requires_grad and self._routers.trains and not taught:
            raise ConfigError(
                "gradient checkpointing with use_reentrant=True is not allowed: the routers' logits carry no gradient "
                "there, and the balance loss would do nothing; pass gradient_checkpointing_kwargs="
                "{'use_reentrant': False}"
            )
        balance = self._routers.balance_loss(choices, inputs.get("attention_mask"))
        share: Any = 1.0
        if num_items_in_batch is not None:
            share = share_of_batch(self._targets(inputs).ne(-100).sum(), num_items_in_batch).to(loss.device)
        # As large as transformers' own, which reads K at balance where this one reads 1.
        weight = factor * self._routers.coefficient * self._routers.top_k
        logits, _, experts = zip(*choices, strict=True)
        routing = {"router_logits": logits, "router_experts": experts, "aux_loss": balance.detach()}
        return loss + weight * share * balance.to(loss.device), {**outputs, **routing}

    def _targets(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """The labels that the model predicts: of a causal one all but each row's first, of others all."""
        if "shift_labels" in inputs:
            return torch.as_tensor(inputs["shift_labels"])
        labels = torch.as_tensor(inputs["labels"])
        return labels[..., 1:] if self._is_causal else labels
