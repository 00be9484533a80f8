"""What all routers have in common, one table of tests for all of them."""

import pytest
import torch

from moe_hf.base.errors import ConfigError
from moe_hf.config.validation import ROUTER_TYPES
from moe_hf.layers.ffn.moe import SparseFFN
from moe_hf.layers.ffn.routers import ROUTERS, LearnedRouter, Router, SwitchRouter
from moe_hf.layers.inputs import LayerInputs

T, D, E = 24, 32, 4
K = {"switch": 1}


@pytest.fixture
def make_router(tiny_config):
    def make(kind: str, **overrides) -> Router:
        torch.manual_seed(0)
        router = ROUTERS[kind].from_config(
            tiny_config(router_type=kind, num_experts_per_tok=K.get(kind, 2), **overrides)
        )
        for parameter in router.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return router.eval()

    return make


@pytest.fixture
def x_TD() -> torch.Tensor:
    return torch.randn(T, D, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def ids_T() -> torch.Tensor:
    return torch.randint(0, 61, (T,), generator=torch.Generator().manual_seed(2))


def test_the_configuration_allows_what_the_table_has() -> None:
    assert tuple(ROUTERS) == ROUTER_TYPES
    with pytest.raises(ConfigError, match=r"unknown router_type 'hahs'.*did you mean 'hash'"):
        ROUTERS["hahs"]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", ROUTER_TYPES)
def test_returns_raw_float32_logits_and_weights_that_fit_the_experts(make_router, x_TD, ids_T, kind, training) -> None:
    router = make_router(kind).train(training)
    logits, weight, expert = router(x_TD.bfloat16(), ids_T)
    assert (logits.shape, logits.dtype, weight.dtype) == ((T, E), torch.float32, torch.bfloat16)
    assert weight.shape == expert.shape
    assert 0 <= expert.min() <= expert.max() <= (E if router.leaves_slots_empty else E - 1)
    # Nobody visits an expert twice, and an empty slot weighs nothing.
    for row, weights in zip(expert.tolist(), weight.tolist(), strict=True):
        filled = [e for e in row if e < E]
        assert len(set(filled)) == len(filled)
        assert all(w == 0 for e, w in zip(row, weights, strict=True) if e == E)


@pytest.mark.parametrize("kind", ROUTER_TYPES)
def test_outside_training_a_token_s_experts_do_not_depend_on_the_others(make_router, x_TD, ids_T, kind) -> None:
    router = make_router(kind)
    if router.learns_from_load:
        router.state_E.copy_(torch.tensor([0.3, 0.2, 0.25, 0.4]))
    whole = router(x_TD, ids_T)
    for t in range(T):
        alone = router(x_TD[t : t + 1], ids_T[t : t + 1])
        assert alone.expert_TK[0].equal(whole.expert_TK[t])
        torch.testing.assert_close(alone.weight_TK[0], whole.weight_TK[t])


@pytest.mark.parametrize("kind", [kind for kind in ROUTER_TYPES if issubclass(ROUTERS[kind], LearnedRouter)])
def test_the_gradient_reaches_the_router_s_weight(make_router, x_TD, kind) -> None:
    router = make_router(kind, norm_topk_prob=False).train()
    router(x_TD).weight_TK.square().sum().backward()
    assert router.weight.grad.abs().max() > 1e-3


@pytest.mark.parametrize("kind", ROUTER_TYPES)
def test_normalised_weights_sum_to_one_where_there_is_an_expert(make_router, x_TD, ids_T, kind) -> None:
    router = make_router(kind, norm_topk_prob=True).train()
    _, weight, expert = router(x_TD, ids_T)
    if kind == "switch":
        return
    has_any = (expert < E).any(dim=-1)
    torch.testing.assert_close(weight.sum(-1), has_any.float())


@pytest.mark.parametrize("kind", ROUTER_TYPES)
def test_forced_balance_deals_the_experts_out(make_router, x_TD, ids_T, kind) -> None:
    router = make_router(kind)
    router.force_balanced = True
    output = router(x_TD, ids_T)
    assert router.load_balance_std(output) == 0.0
    assert router.expert_utilization(output).tolist() == pytest.approx([1 / E] * E)


@pytest.mark.parametrize("kind", ROUTER_TYPES)
def test_a_sequence_shaped_input_is_flattened(make_router, x_TD, ids_T, kind) -> None:
    router = make_router(kind)
    for flat, shaped in zip(router(x_TD, ids_T), router(x_TD.view(2, T // 2, D), ids_T.view(2, T // 2)), strict=True):
        assert shaped.equal(flat)


@pytest.mark.parametrize("kind", ROUTER_TYPES)
def test_padding_takes_nobody_s_place(make_router, x_TD, ids_T, kind) -> None:
    # Real tokens are routed as if the padding were not there, in training too.
    router = make_router(kind).train()
    mask = torch.ones(T, dtype=torch.long)
    mask[::3] = 0
    real = mask == 1
    padded = router(x_TD, ids_T, mask)
    alone = router(x_TD[real], ids_T[real])
    assert padded.expert_TK[real].equal(alone.expert_TK)
    torch.testing.assert_close(padded.weight_TK[real], alone.weight_TK)
    if router.leaves_slots_empty:
        assert (padded.expert_TK[~real] == E).all()


@pytest.mark.parametrize("kind", ROUTER_TYPES)
def test_nothing_but_padding_is_no_trouble(make_router, x_TD, ids_T, kind) -> None:
    router = make_router(kind).train()
    weight = router(x_TD, ids_T, torch.zeros(T)).weight_TK
    assert weight.isfinite().all()


@pytest.mark.parametrize("kind", ["sigmoid_bias", "expert_choice", "expert_threshold"])
def test_a_state_stays_in_float32_when_its_model_is_cast(make_router, kind) -> None:
    router = make_router(kind)
    router.state_E.copy_(torch.tensor([0.1, 0.001, 0.3, 0.4]))
    for cast in (torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.float):
        cast(router)
        assert router.state_E.equal(torch.tensor([0.1, 0.001, 0.3, 0.4]))
    assert router.weight.dtype == torch.float32
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert make_router(kind).state_E.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("kind", ROUTER_TYPES)
def test_routes_of_another_length_are_refused(make_router, x_TD, ids_T, kind) -> None:
    router = make_router(kind)
    router.fixed_expert_TK = torch.zeros(T - 1, 1, dtype=torch.long)
    with pytest.raises(ConfigError, match=f"routes of {T - 1} tokens for a forward of {T}"):
        router(x_TD, ids_T)


@pytest.mark.parametrize(("experts", "k"), [(4, 5), (4, 0)])
def test_k_is_at_most_the_number_of_experts(experts: int, k: int) -> None:
    with pytest.raises(ConfigError, match=r"k=.* must be in \[1, num_experts=4\]"):
        SwitchRouter(D, experts, k)


@pytest.mark.parametrize("kind", ROUTER_TYPES)
def test_works_in_a_sparse_ffn_under_every_stock_backend(tiny_config, kind) -> None:
    x_BSD = torch.randn(2, 6, D, generator=torch.Generator().manual_seed(1))
    ids = torch.randint(0, 61, (2, 6), generator=torch.Generator().manual_seed(2))
    outputs = []
    for backend in ("eager", "grouped_mm", "batched_mm"):
        torch.manual_seed(0)
        config = tiny_config(router_type=kind, num_experts_per_tok=K.get(kind, 2), experts_implementation=backend)
        ffn = SparseFFN(config).train()
        for parameter in ffn.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        outputs.append(ffn(x_BSD, LayerInputs(token_ids=ids)))
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0], atol=1e-5, rtol=1e-5)
