"""The ways of computing experts that are measured: transformers' own, this package's, and what they can at best reach.

Shapes: T tokens, D width, E experts, K experts per token, F width of one expert, N rows.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation

from moe_hf.base.errors import BackendUnavailableError, ConfigError, did_you_mean
from moe_hf.bench.harness.arms import FUSED, OWN, PACKAGE, TRANSFORMERS, Options, Skipped
from moe_hf.bench.speed.configs import moe_config
from moe_hf.bench.speed.sizes import Size
from moe_hf.config.gpt2_moe import GPT2WithMoEConfig
from moe_hf.layers.experts.activations import activation
from moe_hf.layers.experts.backends import EXPERTS_BACKENDS
from moe_hf.layers.experts.experts import Experts
from moe_hf.layers.experts.quantized import quantize_weight, weight_names

TRANSFORMERS_BACKENDS = ("eager", "grouped_mm", "batched_mm")
PACKED = "sorted packed"
QUANTISED = {"8 bits": (8, None), "4 bits": (4, 32)}
"""Arms whose weights are rounded: the bits of a weight, and how many share a scale."""
SUBJECT = "auto"
"""The arm that the CPU goals are about: what a user gets without choosing."""
GPU_SUBJECT = "triton"
# Adapters to packages of other people, among our own backends.
_PACKAGES = ("scattermoe",)
_ONE_KERNEL = ", one kernel"


def require_backends(names: Iterable[str], packed: bool = True) -> tuple[str, ...]:
    """The names themselves, each of a backend that can be measured; `packed` allows our packed and rounded weights too.

    Raises:
        ConfigError: there is no such backend.
    """
    allowed = [*TRANSFORMERS_BACKENDS, *EXPERTS_BACKENDS, *([PACKED, *QUANTISED] if packed else [])]
    for name in names:
        if name not in allowed:
            raise ConfigError(f"unknown backend {name!r}; allowed: {', '.join(allowed)}{did_you_mean(name, allowed)}")
    return tuple(names)


@use_experts_implementation(has_gate=False, has_bias=True)
class StockExperts(nn.Module):
    """Experts as a user of transformers writes them: its activation, its loop, its backends.

    Its weights are replaced by those of the group, which all arms share.
    """

    def __init__(self, config: GPT2WithMoEConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        width, inner = config.hidden_size, config.expert_width
        self.up_proj = nn.Parameter(torch.empty(self.num_experts, inner, width))
        self.up_proj_bias = nn.Parameter(torch.empty(self.num_experts, inner))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, width, inner))
        self.down_proj_bias = nn.Parameter(torch.empty(self.num_experts, width))
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x_TD: torch.Tensor, expert_TK: torch.Tensor, weight_TK: torch.Tensor) -> torch.Tensor:
        """transformers' "eager": a loop over the experts that were hit, added up in place."""
        out_TD = torch.zeros_like(x_TD)
        with torch.no_grad():
            # One class more for the slots to skip.
            chosen_EKT = F.one_hot(expert_TK, num_classes=self.num_experts + 1).permute(2, 1, 0)
            hit = chosen_EKT.sum(dim=(1, 2)).nonzero().flatten().tolist()
        for expert in hit:
            if expert < self.num_experts:
                slot_N, token_N = torch.where(chosen_EKT[expert])
                h_NF = F.linear(x_TD[token_N], self.up_proj[expert], self.up_proj_bias[expert])
                y_ND = F.linear(self.act_fn(h_NF), self.down_proj[expert], self.down_proj_bias[expert])
                out_TD.index_add_(0, token_N, (y_ND * weight_TK[token_N, slot_N, None]).to(out_TD.dtype))
        return out_TD


class Weights(NamedTuple):
    """One set of experts' weights, shared by all arms of a group."""

    up_proj: nn.Parameter
    up_proj_bias: nn.Parameter
    down_proj: nn.Parameter
    down_proj_bias: nn.Parameter


def draw_weights(size: Size, options: Options) -> Weights:
    """Weights that keep the variance of what passes through, biases that are not zero."""
    generator = options.generator()

    def draw(*shape: int, scale: float) -> nn.Parameter:
        values = torch.randn(shape, generator=generator).mul_(scale)
        return nn.Parameter(values.to(options.device, size.torch_dtype))

    width, inner, experts = size.hidden_size, size.expert_width, size.num_experts
    return Weights(
        draw(experts, inner, width, scale=width**-0.5),
        draw(experts, inner, scale=0.1),
        draw(experts, width, inner, scale=inner**-0.5),
        draw(experts, width, scale=0.1),
    )


def stock_experts(config: GPT2WithMoEConfig, weights: Weights, slots_left_empty: bool) -> StockExperts:
    """transformers' experts with these weights.

    Args:
        config: says which backend in `experts_implementation`.
        weights: shared, not copied.
        slots_left_empty: whether the routes hold ids E, which mean that a slot is skipped.
    """
    # Without memory of its own: the group's weights take its place.
    with torch.device("meta"):
        module: Any = StockExperts(config)
    for field, parameter in weights._asdict().items():
        setattr(module, field, parameter)
    # transformers' backends look for skipped slots only where experts are spread over machines.
    module._is_expert_parallel = slots_left_empty
    return module


class Opponent(NamedTuple):
    """One experts module, ready to be called."""

    name: str
    family: str
    module: nn.Module


def opponents(size: Size, weights: Weights, options: Options, training: bool) -> tuple[list[Opponent], list[Skipped]]:
    """Every experts module that this size can be measured with, and those that it cannot, with the reason."""
    found, skipped = [], []
    # The activation that transformers composes from several kernels is one kernel here; how much of the difference is
    # owed to that alone, this arm tells.
    fused = [] if type(ACT2FN[size.activation]) is type(activation(size.activation)) else ["grouped_mm" + _ONE_KERNEL]
    names = [*TRANSFORMERS_BACKENDS, *fused, *EXPERTS_BACKENDS, PACKED]
    for name in names:
        if not options.wants(name.removesuffix(_ONE_KERNEL)):
            continue
        reason = _obstacle(name, size, options, training)
        if reason is None:
            try:
                found.append(_opponent(name, size, weights))
            except (BackendUnavailableError, ConfigError) as error:
                reason = str(error)
        if reason is not None:
            skipped.append(Skipped(name, reason))
    return found, skipped


def quantised_opponents(size: Size, weights: Weights, options: Options) -> tuple[list[Opponent], list[Skipped]]:
    """Experts with rounded weights, which give other numbers than the rest, and those that the widths do not allow."""
    found, skipped = [], []
    for name, stored in QUANTISED.items():
        if options.wants(name):
            module: Any = _opponent(SUBJECT, size, weights).module
            try:
                for field in weight_names(module):
                    quantize_weight(module, field, getattr(weights, field).detach(), *stored)
            except ConfigError as error:
                skipped.append(Skipped(name, str(error)))
            else:
                found.append(Opponent(name, OWN, module))
    return found, skipped


def batched_obstacle(size: Size, options: Options, training: bool) -> str | None:
    """Why batched_mm cannot be measured: it gathers a projection's weights for every row. None where it can."""
    # One of the two projections at a time; training keeps both.
    projections = 2 if training else 1
    gathered = projections * size.rows * size.hidden_size * size.expert_width * size.torch_dtype.itemsize
    if gathered <= options.memory_limit:
        return None
    limit = options.memory_limit / 2**30
    return f"gathers {gathered / 2**30:.1f} GiB of weights, and the memory limit is {limit:.1f} GiB"


def _obstacle(name: str, size: Size, options: Options, training: bool) -> str | None:
    if name == PACKED and training:
        return "packed weights are for inference only"
    return batched_obstacle(size, options, training) if name == "batched_mm" else None


def _opponent(name: str, size: Size, weights: Weights) -> Opponent:
    limited = size.capacity_factor is not None
    backend = "sorted" if name == PACKED else name.removesuffix(_ONE_KERNEL)
    config = moe_config(size, experts_implementation=backend)
    if name in TRANSFORMERS_BACKENDS:
        return Opponent(name, family_of(name), stock_experts(config, weights, limited))
    with torch.device("meta"):
        module: Any = Experts(config)
    for field, parameter in weights._asdict().items():
        setattr(module, field, parameter)
    module._is_expert_parallel = limited
    if name == PACKED:
        module.pack_for_inference()
    return Opponent(name, family_of(name), module)


def family_of(name: str) -> str:
    """Whose the experts backend is, one of `FAMILIES`."""
    if name.endswith(_ONE_KERNEL):
        return FUSED
    if name in TRANSFORMERS_BACKENDS:
        return TRANSFORMERS
    return PACKAGE if name in _PACKAGES else OWN


class DenseRoof(nn.Module):
    """One expert as a dense MLP: N = T * K rows through it are the same FLOPs in two GEMMs, without routing.

    When few rows visit many experts this is no bound on what a mixture can reach: it reads one expert's weights only.
    """

    def __init__(self, weights: Weights, act_fn: nn.Module) -> None:
        super().__init__()
        # Copies: the gradient of a slice of the stacks would be as large as the stacks.
        self.up, self.up_bias, self.down, self.down_bias = (nn.Parameter(w.detach()[0].clone()) for w in weights)
        self.act_fn = act_fn

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        """The transformed rows, same shape."""
        return F.linear(self.act_fn(F.linear(x_ND, self.up, self.up_bias)), self.down, self.down_bias)
