"""DeepSeek-V3's router: what its bias does and does not touch, groups, and the update."""

import pytest
import torch
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from moe_hf.layers.ffn.routers import SigmoidBiasRouter

T, D, E, K = 40, 12, 8, 3


def router(**arguments) -> SigmoidBiasRouter:
    torch.manual_seed(0)
    made = SigmoidBiasRouter(D, E, K, **arguments)
    torch.nn.init.normal_(made.weight, std=0.4)
    return made


def tokens() -> torch.Tensor:
    return torch.randn(T, D, generator=torch.Generator().manual_seed(1))


def test_the_bias_chooses_but_does_not_weigh() -> None:
    plain, biased = router(normalize=False), router(normalize=False)
    biased.e_score_correction_bias[5] = 10.0
    logits, weight, expert = biased(tokens())
    assert (expert == 5).any(dim=-1).all()
    torch.testing.assert_close(weight, logits.sigmoid().gather(1, expert))
    assert not (plain(tokens()).expert_TK == 5).any(dim=-1).all()


@pytest.mark.parametrize(("groups", "per_token"), [(1, 1), (4, 2), (2, 1)])
def test_chooses_and_weighs_as_deepseek_v3_does(groups: int, per_token: int) -> None:
    config = DeepseekV3Config(
        hidden_size=D,
        moe_intermediate_size=4,
        n_routed_experts=E,
        num_experts_per_tok=K,
        n_group=groups,
        topk_group=per_token,
        routed_scaling_factor=2.5,
        norm_topk_prob=True,
        n_shared_experts=1,
    )
    theirs = DeepseekV3MoE(config)
    ours = router(num_groups=groups, groups_per_token=per_token, scale=2.5)
    ours.e_score_correction_bias.copy_(torch.randn(E, generator=torch.Generator().manual_seed(3)) * 0.2)
    theirs.gate.weight.data.copy_(ours.weight)
    theirs.gate.e_score_correction_bias.copy_(ours.e_score_correction_bias)
    out = theirs.gate(tokens())
    # transformers 5.23 routes inside the gate, older ones inside the block.
    expert, weight = (out[2], out[1]) if isinstance(out, tuple) else theirs.route_tokens_to_experts(out)
    logits, our_weight, our_expert = ours(tokens())
    order, our_order = expert.argsort(-1), our_expert.argsort(-1)
    assert expert.gather(1, order).equal(our_expert.gather(1, our_order))
    torch.testing.assert_close(weight.gather(1, order).float(), our_weight.gather(1, our_order))
    assert logits.shape == (T, E)


def test_a_step_moves_busy_experts_down_and_idle_ones_up_and_the_mean_not_at_all() -> None:
    made = router(update_speed=0.01)
    made.adjust(torch.tensor([10.0, 0, 4, 4, 4, 4, 3, 3]), num_forwards=2)
    bias = made.e_score_correction_bias
    assert bias[0] < bias[6] < 0.01 + 1e-6
    assert bias[0] == bias.min()
    assert bias[1] == bias.max()
    assert bias.mean().abs() < 1e-8


def test_following_the_load_balances_a_skewed_router() -> None:
    made = router(update_speed=0.02)
    x_TD = tokens() + 0.5
    before = made.load_balance_std(made(x_TD))
    for _ in range(200):
        logits, _, expert = made(x_TD)
        made.adjust(made.observe(logits, expert, None), num_forwards=1)
    assert made.load_balance_std(made(x_TD)) < 0.5 * before


def test_forward_never_moves_the_bias() -> None:
    made = router().train()
    made(tokens()).weight_TK.sum().backward()
    assert made.e_score_correction_bias.equal(torch.zeros(E))
