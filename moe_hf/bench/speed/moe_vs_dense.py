"""Compares a dense FFN with a small mixture of experts made from it: parameters, FLOPs as often quoted, FLOPs as done.

The mixture has 16 experts that are up projections only and one down projection that all tokens share. Letters: B batch,
S positions, T tokens, D width, F expert width, K experts per token, N rows.
"""

from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from moe_hf.base.registry import Registry
from moe_hf.bench.harness.spread import Ratio, ratio
from moe_hf.bench.harness.timing import SamplingPlan, in_turns
from moe_hf.layers.ffn.routers import HashRouter, Router, SwitchRouter

WIDTH, INNER, NUM_EXPERTS = 256, 512, 16

VS_DENSE_ROUTERS: Registry[int] = Registry("router", {"hash": 2, "switch": 1})
"""The routers that can be compared, and how many experts each takes per token."""


class SharedDownMoE(nn.Module):
    """Experts that are one linear layer each, then a linear layer that all tokens share."""

    def __init__(self, router: Router, activation: nn.Module) -> None:
        super().__init__()
        self.router = router
        self.experts = nn.ModuleList([nn.Linear(WIDTH, INNER) for _ in range(NUM_EXPERTS)])
        self.activation = activation
        self.down = nn.Linear(INNER, WIDTH)

    def forward(self, x_BSD: torch.Tensor, token_ids_BS: torch.Tensor) -> torch.Tensor:
        """The transformed tokens, same shape; each token meets its router's experts only."""
        x_TD = x_BSD.flatten(0, -2)
        _, weight_TK, expert_TK = self.router(x_TD, token_ids_BS.flatten())
        h_TF = x_TD.new_zeros(len(x_TD), INNER)
        for index, expert in enumerate(self.experts):
            token_N, slot_N = torch.where(expert_TK == index)
            h_NF = self.activation(expert(x_TD[token_N])) * weight_TK[token_N, slot_N, None]
            h_TF = h_TF.index_add(0, token_N, h_NF)
        return self.down(h_TF).view_as(x_BSD)


class VsDense(NamedTuple):
    """What was counted and measured.

    `all_experts_flop_ratio` is what every expert on every token would cost over the dense layer, `routed_flop_ratio`
    what one forward pass does, counted by PyTorch in `counted_flops` (mixture, dense), and `formula_flop_ratio` the
    same by hand, the router's own multiplication included. `time` is the mixture's time over the dense layer's.
    """

    router: str
    k: int
    dense_params: int
    moe_params: int
    all_experts_flop_ratio: float
    routed_flop_ratio: float
    formula_flop_ratio: float
    counted_flops: tuple[int, int]
    time: Ratio

    @property
    def quoted_lines(self) -> list[str]:
        """The four lines as they are often quoted."""
        return [
            f"Dense params: {self.dense_params}",
            f"MOE params: {self.moe_params}",
            f"Param increase: {self.moe_params / self.dense_params:.1f}",
            f"FLOP ratio: {self.all_experts_flop_ratio:.1f}",
        ]

    @property
    def true_lines(self) -> list[str]:
        """What the fourth line leaves out."""
        moe, dense = self.counted_flops
        return [
            f"The FLOP ratio above would hold if every token went through all {NUM_EXPERTS} experts.",
            f"Routed FLOP ratio: {self.routed_flop_ratio:.2f} "
            f"(k={self.k}; counted on one forward pass: {moe:,} / {dense:,})",
            f"By formula: {self.formula_flop_ratio:.2f}",
            f"Measured time ratio: {self.time.of_medians:.2f} (forward, no gradients; median of per-round ratios "
            f"{self.time.paired:.2f})",
        ]


def compare_with_dense(router: str, clock: str = "wall", seed: int = 0, plan: SamplingPlan | None = None) -> VsDense:
    """Count and time the mixture with that router on 4 x 512 tokens.

    Args:
        router: a key of `VS_DENSE_ROUTERS`.
        clock: see `seconds_per_call`.
        seed: of weights, tokens and the order of the rounds.
        plan: how much is timed.

    Raises:
        ConfigError: there is no such router.
    """
    k = VS_DENSE_ROUTERS[router]
    torch.manual_seed(seed)
    gate: Router = HashRouter(NUM_EXPERTS, k, seed) if router == "hash" else SwitchRouter(WIDTH, NUM_EXPERTS, k)
    moe = SharedDownMoE(gate, nn.GELU()).eval()
    dense = nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH)).eval()
    x_BSD, token_ids_BS = torch.randn(4, 512, WIDTH), torch.randint(50257, (4, 512))

    routed, plain = _flops(lambda: moe(x_BSD, token_ids_BS)), _flops(lambda: dense(x_BSD))
    steps = {"moe": torch.no_grad()(lambda: moe(x_BSD, token_ids_BS)), "dense": torch.no_grad()(lambda: dense(x_BSD))}
    # The samples come once after each round: the last have all.
    *_, samples = in_turns(steps, plan or SamplingPlan(budget=2.0), clock, torch.device("cpu"), seed)
    # Both of the dense layer's projections have the same size, which makes its cost the unit 2.
    router_cost = NUM_EXPERTS / INNER if gate.balanced_by_loss else 0.0
    return VsDense(
        router,
        k,
        _parameters(dense),
        _parameters(moe),
        (NUM_EXPERTS + 1) / 2,
        routed / plain,
        (k + 1 + router_cost) / 2,
        (routed, plain),
        ratio(samples["moe"], samples["dense"]),
    )


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@torch.no_grad()
def _flops(forward: object) -> int:
    with FlopCounterMode(display=False) as counter:
        forward()  # type: ignore[operator]
    return counter.get_total_flops()
