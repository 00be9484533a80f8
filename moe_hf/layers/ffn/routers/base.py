"""What every router is: raw logits, a choice of experts, and the weights of the chosen ones.

Shapes: T tokens, D width, E experts, K experts per token. The expert id E marks an empty slot.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import nn
from transformers import PreTrainedConfig

from moe_hf.base.errors import ConfigError
from moe_hf.layers.pickling import PicklesWithoutRecorder
from moe_hf.ops.dtypes import without_autocast
from moe_hf.ops.routing.load_statistics import expert_utilization, load_balance_std
from moe_hf.ops.routing.routing import balanced_assignment, router_scores, routing_weights


class RouterOutput(NamedTuple):
    """Raw logits (T, E) in float32, weights (T, K) in the dtype of the tokens, experts (T, K)."""

    logits_TE: torch.Tensor
    weight_TK: torch.Tensor
    expert_TK: torch.Tensor


class Router(PicklesWithoutRecorder, ABC):
    """Chooses experts for each token; a module of its own, so that transformers' recorder sees what it returns.

    Args:
        num_experts: E.
        k: experts per token, 1 to E; on average, for routers that let it vary.
        normalize: whether the weights of a token's experts are scaled to sum to 1.

    Raises:
        ConfigError: `k` is out of range.

    Attributes:
        score: how logits become scores, one of `moe_hf.ops.routing.routing.SCORES`.
        balanced_by_loss: whether a balance loss can teach this router anything.
        learns_from_load: whether it has a state that `adjust` moves between optimizer steps.
        leaves_slots_empty: whether some of the K slots of a token may be empty.
        force_balanced: experts are dealt out in turn instead of chosen; for benchmarks.
        fixed_expert_TK: experts to take instead of choosing (see `moe_hf.models.routes.replay_routes`), or None.
    """

    score: ClassVar[str] = "softmax"
    balanced_by_loss: ClassVar[bool] = True
    learns_from_load: ClassVar[bool] = False
    leaves_slots_empty: ClassVar[bool] = False

    def __init__(self, num_experts: int, k: int, normalize: bool = True) -> None:
        super().__init__()
        for name, value in {"num_experts": num_experts, "k": k}.items():
            if isinstance(value, bool) or not isinstance(value, int):
                raise ConfigError(f"{name}={value!r} is not allowed; it must be an integer >= 1")
        if not 1 <= k <= num_experts:
            raise ConfigError(f"k={k} experts per token is not allowed; it must be in [1, num_experts={num_experts}]")
        self.num_experts = num_experts
        self.num_experts_per_tok = k
        self.normalize = normalize
        self.force_balanced = False
        self.fixed_expert_TK: torch.Tensor | None = None

    @classmethod
    @abstractmethod
    def from_config(cls, config: PreTrainedConfig) -> Self:
        """The router of one sparse layer of a model; any configuration with these fields will do."""

    @abstractmethod
    def logits(self, x_TD: torch.Tensor, token_ids: torch.Tensor | None) -> torch.Tensor:
        """Raw logits (T, E), float32."""

    @abstractmethod
    def choose(self, logits_TE: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
        """Experts (T, K) by the logits; `mask_T` is False at padding."""

    def weigh(self, logits_TE: torch.Tensor, expert_TK: torch.Tensor) -> torch.Tensor:
        """Weights (T, K) of the chosen experts, float32, with gradient for the logits."""
        # Routes that are replayed may come from a router that left slots empty.
        may_be_empty = self.leaves_slots_empty or self.fixed_expert_TK is not None
        return routing_weights(router_scores(logits_TE, self.score), expert_TK, self.normalize, may_be_empty)

    def forward(
        self,
        x_TD: torch.Tensor,
        token_ids: torch.Tensor | None = None,
        mask_T: torch.Tensor | None = None,
    ) -> RouterOutput:
        """Experts for tokens, and how much each counts.

        Args:
            x_TD: tokens, (T, D), or with any leading dimensions, which are flattened to T.
            token_ids: T vocabulary ids; None when only embeddings were given.
            mask_T: nonzero at real tokens, T entries; None where all are.
        """
        x_TD = x_TD.reshape(-1, x_TD.shape[-1])
        token_ids = None if token_ids is None else token_ids.reshape(-1)
        mask_T = None if mask_T is None else mask_T.reshape(-1) != 0
        # Scores stay in float32 even under autocast: in half precision near-ties flip experts.
        with without_autocast(x_TD):
            logits_TE = self.logits(x_TD, token_ids)
            if self.fixed_expert_TK is not None:
                expert_TK = _routes_for(x_TD.shape[0], self.fixed_expert_TK)
            elif self.force_balanced:
                expert_TK = balanced_assignment(x_TD.shape[0], self.num_experts_per_tok, self.num_experts, x_TD.device)
            else:
                expert_TK = self.choose(logits_TE, mask_T)
            weight_TK = self.weigh(logits_TE, expert_TK)
        return RouterOutput(logits_TE, weight_TK.to(x_TD.dtype), expert_TK)

    def load_balance_std(self, assign: torch.Tensor | RouterOutput) -> float:
        """Standard deviation of the experts' loads over their mean, for experts that this router chose."""
        return load_balance_std(_experts_of(assign), self.num_experts)

    def expert_utilization(self, assign: torch.Tensor | RouterOutput) -> torch.Tensor:
        """Share of the slots that each expert got, (E,); sums to 1."""
        return expert_utilization(_experts_of(assign), self.num_experts)


class LearnedRouter(Router):
    """A router with a linear score per expert, `weight` (E, D).

    Args:
        dim: width D of the tokens.
        num_experts, k, normalize: as in `Router`.
        jitter: the tokens are multiplied by a uniform draw from 1 +- this before scoring, in training only (Fedus et
            al. 2021, Switch); the experts get the clean tokens.
    """

    def __init__(self, dim: int | None, num_experts: int, k: int, normalize: bool = True, jitter: float = 0.0) -> None:
        super().__init__(num_experts, k, normalize)
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int) or dim < 1):
            raise ConfigError(f"dim={dim!r} is not allowed; it must be the width of the tokens, an integer >= 1")
        if not isinstance(jitter, int | float) or not 0 <= jitter < 1:
            raise ConfigError(f"jitter={jitter!r} is not allowed; it must be a number in [0, 1)")
        self.jitter = jitter
        self.weight: Any = nn.UninitializedParameter()
        if dim is not None:
            self.weight = nn.Parameter(torch.empty(num_experts, dim))
            nn.init.normal_(self.weight, std=0.02)

    def _materialize(self, dim: int) -> None:
        # Not `isinstance`, which parameters make slow.
        if type(self.weight) is nn.UninitializedParameter:
            self.weight.materialize((self.num_experts, dim))
            nn.init.normal_(self.weight, std=0.02)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        stored = state_dict.get(f"{prefix}weight")
        if stored is not None and not isinstance(stored, nn.UninitializedParameter):
            # A router that has seen no tokens takes its width from the checkpoint.
            self._materialize(stored.shape[-1])
        super()._load_from_state_dict(state_dict, prefix, *args)

    @classmethod
    def from_config(cls, config: PreTrainedConfig) -> Self:
        """The router of one sparse layer of a model."""
        return cls(**cls.options(config))

    @classmethod
    def options(cls, config: PreTrainedConfig) -> dict[str, Any]:
        """The arguments of the router, as the configuration names them."""
        return {
            "dim": config.hidden_size,
            "num_experts": config.num_experts,
            "k": config.num_experts_per_tok,
            "normalize": config.norm_topk_prob,
            "jitter": config.router_jitter_noise,
        }

    def logits(self, x_TD: torch.Tensor, token_ids: torch.Tensor | None) -> torch.Tensor:
        """Raw logits (T, E), float32; `token_ids` is not looked at."""
        self._materialize(x_TD.shape[-1])
        score_input = x_TD.float()
        if self.training and self.jitter > 0:
            score_input = score_input * torch.empty_like(score_input).uniform_(1 - self.jitter, 1 + self.jitter)
        return nn.functional.linear(score_input, self.weight.float())


class LoadLearner(LearnedRouter):
    """A learned router with a state per expert that moves between optimizer steps, by what the step's tokens did.

    Forward never writes the state, so nothing is counted twice when activation checkpointing runs a layer again. The
    caller adds up `observe` over the micro-batches and ranks of a step and hands the sum to `adjust`;
    `moe_hf.training.balance.RouterStateCallback` does so in any Trainer.
    """

    learns_from_load: ClassVar[bool] = True
    state_name: ClassVar[str]
    fresh_state: ClassVar[float] = 0.0

    @property
    def state_E(self) -> torch.Tensor:
        """The state, one float32 number per expert; `fresh_state` before the first `adjust`."""
        return self.get_buffer(self.state_name)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        # The state stays in float32 when the module is cast: in half precision its small steps would be lost.
        before_E = self.state_E
        super()._apply(fn, recurse)
        if self.state_E.dtype != torch.float32:
            self._buffers[self.state_name] = before_E.to(self.state_E.device)
        return self

    @abstractmethod
    def observe(self, logits_TE: torch.Tensor, expert_TK: torch.Tensor, mask_T: torch.Tensor | None) -> torch.Tensor:
        """What one forward says about each expert, (E,) float32; may be added up over forwards."""

    @abstractmethod
    def adjust(self, observed_E: torch.Tensor, num_forwards: int) -> None:
        """Move the state by the sum of `num_forwards` observations."""


def _routes_for(num_tokens: int, expert_TK: torch.Tensor) -> torch.Tensor:
    if expert_TK.shape[0] != num_tokens:
        raise ConfigError(
            f"got routes of {expert_TK.shape[0]} tokens for a forward of {num_tokens}; replay exactly the tokens that "
            "were recorded, in one forward"
        )
    return expert_TK


def _experts_of(assign: torch.Tensor | RouterOutput) -> torch.Tensor:
    return assign if isinstance(assign, torch.Tensor) else assign.expert_TK
