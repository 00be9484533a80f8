"""The losses of a model's routers, from what its forward recorded.

Shapes: B batch, S positions, T = B * S tokens, E experts, K experts per token.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import distributed
from transformers.modeling_outputs import MoeModelOutputWithPast

from moe_hf.config.decoder import MoEDecoderConfig
from moe_hf.layers.ffn.routers import ROUTERS, LearnedRouter
from moe_hf.ops.routing.balance import BALANCE_LOSSES, Routed, flat_mask, mean_over_layers, router_z_loss
from moe_hf.ops.routing.routing import router_scores


class RouterLosses(NamedTuple):
    """Unscaled router losses of one forward, averaged over the layers that they can teach; None where there are none.

    `balance` reads 1.0 at perfect balance, or 0.0 with `router_balance_loss="cv_squared"`.
    """

    balance: torch.Tensor | None
    z: torch.Tensor | None


class BalanceWindow:
    """Slots per expert, added up over the forwards of an optimizer step, for the global-batch balance loss.

    A micro-batch sees the counts up to and including its own (Qiu et al. 2025, 2501.11873, section 3.2).
    """

    def __init__(self) -> None:
        self._counts: dict[int, torch.Tensor] = {}

    def add(self, layer: int, count_E: torch.Tensor) -> torch.Tensor:
        """Count one forward of the `layer`-th router; returns all counts since the last `reset`, (E,)."""
        before = self._counts.get(layer)
        self._counts[layer] = count_E if before is None else before.to(count_E.device) + count_E
        return self._counts[layer]

    def reset(self) -> None:
        """Begin a new optimizer step."""
        self._counts = {}


def router_losses(
    outputs: MoeModelOutputWithPast,
    config: MoEDecoderConfig,
    attention_mask: torch.Tensor | None,
    training: bool = True,
    window: BalanceWindow | None = None,
) -> RouterLosses:
    """The losses of the recorded routing; both None when nothing was recorded or no layer is sparse.

    Args:
        outputs: of the skeleton, with `router_logits` and `router_experts`.
        config: of the model.
        attention_mask: (B, past + S), nonzero at real tokens; other forms do not say which tokens are padding.
        training: whether this forward belongs to an optimizer step; only those join the global batch.
        window: counts of the optimizer step's earlier forwards, for the global-batch loss.
    """
    if not outputs.router_logits:
        return RouterLosses(None, None)
    mask_BS = mask_of_call(attention_mask, len(outputs.router_logits[0]))
    batch_size = outputs["last_hidden_state"].shape[0]
    balances, learned = [], []
    layers = zip(config.router_of_sparse_layer, outputs.router_logits, outputs["router_experts"], strict=True)
    for layer, (kind, logits_TE, expert_TK) in enumerate(layers):
        router = ROUTERS[kind]
        if issubclass(router, LearnedRouter):
            learned.append(logits_TE)
        if router.balanced_by_loss:
            score_TE = router_scores(logits_TE.float(), router.score)
            prob_TE = score_TE
            if router.score == "sigmoid":
                total_T1 = score_TE.sum(dim=-1, keepdim=True)
                # All scores may underflow to 0, and 0 / 0 would make the loss NaN.
                prob_TE = score_TE / total_T1.clamp(min=torch.finfo(total_T1.dtype).tiny)
            mask_T = flat_mask(mask_BS, logits_TE)
            pooled = partial(_pooled, training=training, window=window, layer=layer)
            routed = Routed(prob_TE, expert_TK, batch_size, mask_T, pooled)
            balances.append(BALANCE_LOSSES[config.router_balance_loss](routed))
    return RouterLosses(
        mean_over_layers(balances) if balances else None,
        router_z_loss(learned, mask_BS) if learned else None,
    )


def mask_of_call(attention_mask: Any, num_tokens: int) -> torch.Tensor | None:
    """The part of a (B, past + S) mask that is about the T = B * S tokens of this call; None for other forms.

    With a cache the mask also covers earlier tokens, with a prefix that was learnt even positions without any.
    """
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.ndim != 2:
        return None
    return attention_mask[:, -(num_tokens // len(attention_mask)) :]


def _pooled(count_E: torch.Tensor, training: bool, window: BalanceWindow | None, layer: int) -> torch.Tensor:
    """The counts of the optimizer step so far, where this forward belongs to one."""
    if not training:
        return count_E
    if distributed.is_initialized():
        distributed.all_reduce(count_E)
    return count_E if window is None else window.add(layer, count_E)


def share_of_batch(target_count: torch.Tensor, num_items: torch.Tensor | int) -> torch.Tensor:
    """This call's share of the optimizer step's target tokens, by which its router losses count.

    Trainer sums the losses of all accumulation steps and ranks, cross-entropy being divided by the tokens of all of
    them; a router loss without the same share would be multiplied by their number.
    """
    return target_count / torch.as_tensor(num_items, device=target_count.device)
