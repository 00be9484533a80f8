"""Attention by itself: all keys, the largest logits, the largest blocks."""

from moe_hf.bench.mixers.attention_arms import BLOCK, EXACT, SDPA, attention_arms


def test_with_few_keys_all_forms_are_the_whole_attention():
    outputs = {arm.name: arm.step() for arm in attention_arms(5, 40, 64)}
    assert list(outputs) == [SDPA, EXACT, BLOCK]
    assert {out.shape for out in outputs.values()} == {(1, 1, 5, 64)}


def test_one_query_sees_all_keys_and_few_of_many_are_another_result():
    dense, exact, _ = (arm.step() for arm in attention_arms(1, 40, 64))
    assert (dense - exact).abs().max() < 1e-5
    dense, exact, _ = (arm.step() for arm in attention_arms(1, 400, 64))
    assert (dense - exact).abs().max() > 1e-3
