"""The softmax routers: float32 scores, jitter in training only, gradients, and what transformers' own compute."""

import pytest
import torch
from transformers import GptOssConfig, MixtralConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter

from moe_hf import ConfigError
from moe_hf.layers.ffn.routers import ROUTERS, SwitchRouter, TopKRouter

T, D, E = 11, 32, 4


@pytest.fixture
def make_router(tiny_config):
    def make(**overrides) -> TopKRouter:
        torch.manual_seed(0)
        router = ROUTERS["top_k"].from_config(tiny_config(**overrides))
        torch.nn.init.normal_(router.weight, std=0.3)
        return router.eval()

    return make


@pytest.fixture
def x_TD() -> torch.Tensor:
    return torch.randn(T, D, generator=torch.Generator().manual_seed(1))


def test_returns_raw_logits_weights_and_experts(make_router, x_TD: torch.Tensor) -> None:
    router = make_router()
    logits, weight, expert = router(x_TD)
    # Raw: a probability here would be softmaxed a second time by the losses.
    torch.testing.assert_close(logits, x_TD @ router.weight.T)
    assert (logits.shape, weight.shape, expert.shape) == ((T, E), (T, 2), (T, 2))
    assert expert.equal(logits.topk(2).indices)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_are_float32_and_weights_are_the_token_s_type(make_router, x_TD: torch.Tensor, dtype) -> None:
    router = make_router().to(dtype)
    logits, weight, _ = router(x_TD.to(dtype))
    assert (logits.dtype, weight.dtype) == (torch.float32, dtype)
    assert logits.equal(x_TD.to(dtype).float() @ router.weight.float().T)


def test_autocast_does_not_lower_the_scores(make_router, x_TD: torch.Tensor) -> None:
    router = make_router()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = router(x_TD)[0]
    assert logits.equal(router(x_TD)[0])


def test_jitter_multiplies_the_router_s_input_in_training_only(make_router) -> None:
    router = make_router(router_jitter_noise=0.1)
    x = torch.eye(D)[:1].repeat(1000, 1)
    assert router(x)[0].std(dim=0).max() == 0
    router.train()
    ratio = router(x)[0] / router(x[:1])[0].sign() / router.weight[:, 0].abs()
    assert 0.9 <= ratio.min() < 0.91
    assert 1.09 < ratio.max() <= 1.1


def test_jitter_leaves_the_tokens_alone(make_router, x_TD: torch.Tensor) -> None:
    before = x_TD.clone()
    make_router(router_jitter_noise=0.5).train()(x_TD)
    assert x_TD.equal(before)


def test_without_normalising_the_weights_are_probabilities(make_router, x_TD: torch.Tensor) -> None:
    logits, weight, expert = make_router(norm_topk_prob=False)(x_TD)
    torch.testing.assert_close(weight, logits.softmax(-1).gather(1, expert))


def test_the_gradient_reaches_the_weight_through_the_chosen_weights(make_router, x_TD: torch.Tensor) -> None:
    router = make_router()
    router(x_TD)[1][:, 0].sum().backward()
    assert router.weight.grad.abs().sum() > 0


def test_weights_are_mixtral_s_and_gpt_oss_s(make_router, x_TD: torch.Tensor) -> None:
    # One of them normalises after the softmax, the other takes a softmax over the chosen logits: the same function.
    router = make_router()
    mixtral = MixtralTopKRouter(MixtralConfig(hidden_size=D, num_local_experts=E, num_experts_per_tok=2))
    gpt_oss = GptOssTopKRouter(GptOssConfig(hidden_size=D, num_local_experts=E, num_experts_per_tok=2))
    with torch.no_grad():
        gpt_oss.bias.zero_()
    for other in (mixtral, gpt_oss):
        other.weight.data.copy_(router.weight)
        _, weight, expert = other(x_TD)
        assert expert.equal(router(x_TD).expert_TK)
        torch.testing.assert_close(weight, router(x_TD).weight_TK)


def test_switch_weighs_by_probability_so_that_one_expert_teaches_the_router(x_TD: torch.Tensor) -> None:
    router = SwitchRouter(D, E)
    logits, weight, expert = router(x_TD)
    torch.testing.assert_close(weight, logits.softmax(-1).gather(1, expert))
    assert expert.equal(logits.argmax(-1, keepdim=True))
    weight.sum().backward()
    assert router.weight.grad.abs().max() > 0


def test_a_single_normalised_weight_would_teach_nothing(x_TD: torch.Tensor) -> None:
    assert SwitchRouter(D, E, k=1, normalize=True).normalize is False
    assert SwitchRouter(D, E, k=2, normalize=True).normalize is True


def test_a_switch_without_a_width_takes_that_of_the_first_tokens() -> None:
    router, x = SwitchRouter(num_experts=16), torch.randn(5, 12)
    weight = router(x).weight_TK
    assert router.weight.shape == (16, 12)
    again = SwitchRouter(num_experts=16)
    again.load_state_dict(router.state_dict())
    assert again(x).weight_TK.equal(weight)


@pytest.mark.parametrize("given", [{"num_experts": "x"}, {"num_experts": True}, {"dim": 0}, {"jitter": float("nan")}])
def test_an_odd_value_is_named(given) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(given))}="):
        SwitchRouter(**{"dim": 8, "num_experts": 4, **given})
