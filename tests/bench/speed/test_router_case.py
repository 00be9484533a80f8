"""The routers alone, on tokens as a LayerNorm leaves them and ids as skewed as words are."""

from moe_hf.bench.harness.arms import FORWARD, ROOF, TRAINING, Options
from moe_hf.bench.speed.router_case import build_routers, draw_tokens, make_router
from moe_hf.layers.ffn.routers import ROUTERS
from tests.bench.measured import SIZE, reasons


def test_every_router_that_can_route_the_size_is_an_arm_beside_the_bare_projection():
    group = build_routers(SIZE, FORWARD, Options())
    assert {arm.name for arm in group.arms} | set(reasons(group)) >= set(ROUTERS)
    assert [arm.name for arm in group.arms if arm.family == ROOF] == ["logits alone"]
    weight_TK = next(arm for arm in group.arms if arm.name == "top_k").step()
    assert weight_TK.shape == (SIZE.tokens, SIZE.k)


def test_a_router_without_gradients_is_left_out_of_training():
    assert reasons(build_routers(SIZE, TRAINING, Options()))["hash"] == "has no gradient"


def test_the_switch_router_takes_one_expert_whatever_the_size_says():
    assert make_router("switch", SIZE, Options()).num_experts_per_tok == 1
    assert make_router("top_k", SIZE, Options()).num_experts_per_tok == SIZE.k


def test_frequent_ids_are_drawn_as_often_as_zipf_says():
    _, token_ids_T = draw_tokens(SIZE._replace(tokens=4000), Options())
    count_V = token_ids_T.bincount(minlength=4096)
    assert count_V[0] > 1.5 * count_V[1] > 1.5 * count_V[4]
