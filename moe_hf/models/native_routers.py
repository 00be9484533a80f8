"""Watches the routers of transformers' own Mixtures of Experts: what they chose, their balance loss, their biases.

Shapes: B batch, S positions, T = B * S tokens, E experts, K experts per token.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from moe_hf.models.adapter_states import RouterState, save_states_with_adapters
from moe_hf.models.found_routers import LayerChoice, choice_of, find_routers
from moe_hf.models.router_losses import mask_of_call
from moe_hf.ops.routing.balance import expert_counts, flat_mask, layer_balance_loss, mean_over_layers

# What DeepSeek-V3 and those after it call the bias that is added to the scores for the choice alone.
_BIAS_NAMES = ("e_score_correction_bias", "expert_bias")


class NativeRouters:
    """The routers of a model whose class is transformers' own.

    Args:
        model: with experts; it may be wrapped, as peft does.
    """

    def __init__(self, model: nn.Module) -> None:
        self._routers = find_routers(model)
        config: Any = getattr(model, "config", None)
        config = config.get_text_config() if config is not None else None
        self.top_k = int(getattr(config, "num_experts_per_tok", None) or 1)
        # Models that balance themselves by a bias have no such loss.
        self.coefficient = float(getattr(config, "router_aux_loss_coef", None) or 0.0)
        self.biases = [_bias_of(model, name, router) for name, router in self._routers.items()]

    def __bool__(self) -> bool:
        return bool(self._routers)

    @property
    def trains(self) -> bool:
        """Whether any router has a weight that is trained."""
        return any(parameter.requires_grad for router in self._routers.values() for parameter in router.parameters())

    @property
    def have_biases(self) -> bool:
        """Whether any router has a correction bias."""
        return any(bias is not None for bias in self.biases)

    @contextmanager
    def recording(self) -> Iterator[list[LayerChoice]]:
        """The choices of the forward inside the `with`, layer by layer; the model is left as it was.

        What activation checkpointing computes again runs outside, in the backward pass, and so counts once.
        """
        choices: list[LayerChoice] = []
        handles = self.watch(choices)
        try:
            yield choices
        finally:
            for handle in handles:
                handle.remove()

    def balance_loss(self, choices: list[LayerChoice], attention_mask: Any = None) -> torch.Tensor:
        """The mean over layers of E * sum of (share of slots) * (mean probability); 1.0 at balance.

        transformers' own pools the layers, so that one's collapse may cancel another's, and reads K at balance.

        Args:
            choices: of one forward.
            attention_mask: (B, S), nonzero at tokens that count; other forms do not say which.
        """
        losses = []
        for choice, bias in zip(choices, self.biases, strict=True):
            logits_TE = choice.logits_TE.float()
            if bias is None:
                prob_TE = logits_TE.softmax(dim=-1)
            else:
                score_TE = logits_TE.sigmoid()
                prob_TE = score_TE / score_TE.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
            mask_T = flat_mask(mask_of_call(attention_mask, logits_TE.shape[0]), logits_TE)
            count_E = expert_counts(choice.expert_TK, logits_TE.shape[-1], mask_T)
            losses.append(layer_balance_loss(prob_TE, count_E, mask_T))
        return mean_over_layers(losses)

    def watch(self, choices: list[LayerChoice]) -> list[RemovableHandle]:
        """Append to `choices` what each router chooses, until the handles are removed."""

        def take_down(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            choices.append(choice_of(output, self.top_k))

        return [router.register_forward_hook(take_down) for router in self._routers.values()]


class BiasUpkeep:
    """Moves the correction biases of a model once per optimizer step, towards an even load (DeepSeek-AI 2024, V3).

    Nothing in transformers does. It counts while the model trains, from now until it is closed.

    Args:
        model: one whose routers have such biases.
        routers: of the model.
        update_speed: a bias's step; DeepSeek-V3 was trained with 0.001.
    """

    def __init__(self, model: nn.Module, routers: NativeRouters, update_speed: float = 0.001) -> None:
        self._routers, self._update_speed = routers, update_speed
        self._counts: list[torch.Tensor | None] = [None] * len(routers.biases)
        self._choices: list[LayerChoice] = []
        self._watching: list[RemovableHandle] = []
        save_states_with_adapters(model, [state for state in routers.biases if state is not None])
        # The innermost model, which peft and others wrap: its masks have one form.
        body = next(module for module in reversed(list(model.modules())) if isinstance(module, PreTrainedModel))
        self._handles = [
            body.register_forward_pre_hook(self._begin, with_kwargs=True),
            body.register_forward_hook(self._end, with_kwargs=True),
        ]

    def _begin(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        # A forward that an error cut off never came to its end.
        for handle in self._watching:
            handle.remove()
        self._choices, self._watching = [], []
        if module.training:
            self._watching = self._routers.watch(self._choices)

    @torch.no_grad()
    def _end(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        for handle in self._watching:
            handle.remove()
        for layer, (logits_TE, _, expert_TK) in enumerate(self._choices):
            mask_T = flat_mask(mask_of_call(kwargs.get("attention_mask"), logits_TE.shape[0]), logits_TE)
            count_E = expert_counts(expert_TK, logits_TE.shape[-1], mask_T)
            before = self._counts[layer]
            self._counts[layer] = count_E if before is None else before + count_E
        self._choices, self._watching = [], []

    @torch.no_grad()
    def step(self) -> None:
        """Move the biases by everything counted since the last call, on all ranks alike."""
        for count_E, state in zip(self._counts, self._routers.biases, strict=True):
            if count_E is None or state is None:
                continue
            bias = state.value
            if distributed.is_initialized():
                distributed.all_reduce(count_E)
            step_E = (count_E.mean() - count_E).sign().to(bias)
            # A choice sees only differences of biases: without the mean they cannot drift away together.
            bias += (self._update_speed * (step_E - step_E.mean())).view_as(bias)
        self._counts = [None] * len(self._counts)

    def close(self) -> None:
        """Stop watching."""
        for handle in [*self._handles, *self._watching]:
            handle.remove()


def _bias_of(model: nn.Module, name: str, router: nn.Module) -> RouterState | None:
    """A router's correction bias, which some models keep in a part of it, others in the layer around it."""
    for owner in (router, *router.modules(), model.get_submodule(name.rpartition(".")[0])):
        for word in _BIAS_NAMES:
            if isinstance(getattr(owner, word, None), torch.Tensor):
                return RouterState(owner, word)
    return None
