"""A mixture of experts for anybody's transformer block: it takes the place of the block's MLP.

Shapes: T tokens, D width, E experts, K experts per token, F width of one expert.
"""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.activations import ACT2FN

from moe_hf.base.errors import ConfigError, did_you_mean
from moe_hf.layers.experts.experts import Experts
from moe_hf.layers.ffn.routers import LearnedRouter, SwitchRouter, TopKRouter
from moe_hf.ops.routing.balance import cv_squared, importance
from moe_hf.ops.routing.load_statistics import expert_utilization

DEFAULT_IMPLEMENTATION = "auto"
_WIDTH_NAMES = ("n_embd", "hidden_size")
_ACTIVATION_NAMES = ("activation_function", "hidden_act", "act_fn")
_DROPOUT_NAMES = ("dropout", "resid_pdrop")


class _ExpertsConfig:
    """The fields that `Experts` and transformers' dispatch read."""

    mlp_gated = False

    def __init__(self, num_experts: int, hidden_size: int, expert_width: int, hidden_act: str, bias: bool) -> None:
        self.num_experts = num_experts
        self.hidden_size = hidden_size
        self.expert_width = expert_width
        self.hidden_act = hidden_act
        self.mlp_bias = bias
        # transformers' name for it.
        self._experts_implementation = DEFAULT_IMPLEMENTATION


class _Routed(NamedTuple):
    """What the last forward decided, and whether that was in training mode."""

    weight_TK: torch.Tensor
    expert_TK: torch.Tensor
    training: bool


class MoE(nn.Module):
    """E experts, of which each token visits the `top_k` that a learned router scores highest.

    `forward(x)` takes (..., D) and returns the same shape, each token by itself, so it replaces an MLP in one line:
    `self.mlp = MoE(config)`. Add `get_load_balance_loss()` to the training loss. The weights of a token's experts are
    their softmax probabilities, scaled to sum to 1; with `top_k=1` they are not scaled (Fedus et al. 2021, Switch), so
    that the router always learns from the output as well.

    Args:
        config: the host's: any object with the width as `n_embd` or `hidden_size`. It may have `dropout` or
            `resid_pdrop` (of the output, default 0), `bias` (of the experts' projections, default True),
            `activation_function`, `hidden_act` or `act_fn` (a key of transformers' `ACT2FN`, default "gelu"), and
            `initializer_range` (standard deviation of fresh weights, default 0.02).
        num_experts: E.
        top_k: K, 1 to E.
        load_balance_weight: factor of the balance loss, >= 0; 0.01 is usual.
        d_expert: width F of one expert, which has two projections and no gate; None means 4 x D.

    Raises:
        ConfigError: `config` lacks the width, or a value is out of range.

    >>> from types import SimpleNamespace
    >>> moe = MoE(SimpleNamespace(n_embd=32), num_experts=4)
    >>> moe(torch.zeros(2, 5, 32)).shape
    torch.Size([2, 5, 32])
    """

    def __init__(
        self,
        config: Any,
        num_experts: int = 8,
        top_k: int = 2,
        load_balance_weight: float = 0.01,
        d_expert: int | None = None,
    ) -> None:
        super().__init__()
        if not _is_whole(num_experts) or not _is_whole(top_k) or top_k > num_experts:
            raise ConfigError(
                f"MoE got num_experts={num_experts}, top_k={top_k}; num_experts must be at least 1, and top_k 1 to "
                "num_experts"
            )
        load_balance_weight = _number("load_balance_weight", load_balance_weight, 0.0, 1e6)
        width = _width_of(config)
        if d_expert is not None and not _is_whole(d_expert):
            raise ConfigError(f"d_expert must be at least 1, got {d_expert}; None means 4 x {width}")
        self.num_experts = num_experts
        self.top_k = top_k
        self.load_balance_weight = load_balance_weight
        self.initializer_range = _number(
            "initializer_range", _first_of(config, ("initializer_range",), 0.02), 0.0, 100.0
        )
        router = TopKRouter if top_k > 1 else SwitchRouter
        self.gate: LearnedRouter = router(width, num_experts, top_k)
        bias = bool(_first_of(config, ("bias",), True))
        fields: Any = _ExpertsConfig(num_experts, width, d_expert or 4 * width, _activation_of(config), bias)
        self.experts: Any = Experts.from_config(fields)
        self.dropout = nn.Dropout(_number("dropout", _first_of(config, _DROPOUT_NAMES, 0.0), 0.0, 1.0))
        self._routed: _Routed | None = None
        self.reset_parameters()

    @property
    def experts_implementation(self) -> str:
        """Which backend computes the experts: a name that transformers' `ExpertsInterface` has, or "eager"."""
        return self.experts.config._experts_implementation

    @experts_implementation.setter
    def experts_implementation(self, name: str) -> None:
        self.experts.config._experts_implementation = name

    def reset_parameters(self) -> None:
        """Draw all weights anew, normal with `initializer_range`; biases become 0.

        The constructor does it; needed again only after the module was made on the meta device. A host's own
        initialisation of its `nn.Linear`s touches nothing here.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=self.initializer_range)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The transformed tokens (..., D), same shape."""
        x_TD = x.reshape(-1, x.shape[-1])
        _, weight_TK, expert_TK = self.gate(x_TD)
        self._remember(weight_TK, expert_TK)
        return self.dropout(self.experts(x_TD, expert_TK, weight_TK).view_as(x))

    def _remember(self, weight_TK: torch.Tensor, expert_TK: torch.Tensor) -> None:
        # Activation checkpointing runs forward again within backward. The first time is what the loss was made of,
        # and the graph of the second would keep alive the very activations that checkpointing saves.
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return
        self._routed = _Routed(weight_TK if self.training else weight_TK.detach(), expert_TK, self.training)

    def get_load_balance_loss(self, weighted: bool = True) -> torch.Tensor:
        """How unevenly the last forward used the experts, ready to be added to the training loss; 0.0 at balance.

        The squared coefficient of variation of the experts' importance, which is the sum of the routing weights that
        an expert got (Shazeer et al. 2017, eq. 6-7), at most E - 1. Of the last forward alone: with several forwards
        per optimizer step ask after each. It carries a gradient if that forward was in training mode.

        Args:
            weighted: multiply by `load_balance_weight`; False gives the bare value, for logging.

        Returns:
            scalar, float32.

        Raises:
            ConfigError: there was no forward yet; or the last one was in training mode but without gradient, so that
                the loss would silently teach nothing.
        """
        weight_TK, expert_TK, training = self._last_routing("get_load_balance_loss")
        can_learn = torch.is_grad_enabled() and self.gate.weight.requires_grad
        if training and can_learn and not weight_TK.requires_grad:
            raise ConfigError(
                "the last forward in training mode had no gradient, so its balance loss cannot teach the router; with "
                "activation checkpointing give use_reentrant=False, and to read the bare number ask in eval mode or "
                "under torch.no_grad()"
            )
        # Half precision cannot add up thousands of weights.
        loss = cv_squared(importance(weight_TK.float(), expert_TK, self.num_experts))
        return self.load_balance_weight * loss if weighted else loss

    def expert_utilization(self) -> torch.Tensor:
        """Share of the last forward's slots that each expert got, (E,) float32; sums to 1.

        Raises:
            ConfigError: there was no forward yet.
        """
        return expert_utilization(self._last_routing("expert_utilization").expert_TK, self.num_experts)

    def _last_routing(self, asked: str) -> _Routed:
        if self._routed is None:
            raise ConfigError(f"{asked}() speaks of the last forward, and there was none; call the module first")
        return self._routed

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles cannot hold a piece of an autograd graph.
        routed = self._routed
        if routed is not None:
            routed = _Routed(routed.weight_TK.detach(), routed.expert_TK, training=False)
        return {**self.__dict__, "_routed": routed}

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        return f"num_experts={self.num_experts}, top_k={self.top_k}, load_balance_weight={self.load_balance_weight}"


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**31


def _number(name: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise ConfigError(f"{name} must be >= {least:g}, got {value!r}; it is a number, at most {most:g}")
    return float(value)


def _first_of(config: Any, names: tuple[str, ...], default: Any) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), default)


def _width_of(config: Any) -> int:
    width = _first_of(config, _WIDTH_NAMES, None)
    if width is None:
        has = [name for name in dir(config) if not name.startswith("_") and not callable(getattr(config, name, None))]
        raise ConfigError(
            f"MoE reads the width of the tokens from {' or '.join(_WIDTH_NAMES)} of its config, and "
            f"{type(config).__name__} has neither; it has {', '.join(has) or 'no attributes'}; pass an object such as "
            "types.SimpleNamespace(n_embd=768)"
        )
    if not _is_whole(width):
        raise ConfigError(f"MoE got {width!r} as the width of the tokens; it must be an integer >= 1")
    return width


def _activation_of(config: Any) -> str:
    name = _first_of(config, _ACTIVATION_NAMES, "gelu")
    if not isinstance(name, str) or name not in ACT2FN:
        raise ConfigError(
            f"MoE reads the experts' activation from {', '.join(_ACTIVATION_NAMES)} of its config and got {name!r}; "
            f"allowed are the names in transformers.activations.ACT2FN{did_you_mean(str(name), list(ACT2FN))}"
        )
    return name
