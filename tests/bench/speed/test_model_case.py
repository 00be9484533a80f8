"""The whole model: one mixture per backend beside two dense models, the same tokens for all."""

import torch

from moe_hf.bench.harness.arms import GENERATE, ROOF, TRAINING, Options
from moe_hf.bench.harness.comparison import compare
from moe_hf.bench.speed.model_case import DENSE_TWIN, MODEL_GOALS, NEW_TOKENS, PROMPT, STOCK_GPT2, build_model
from tests.bench.measured import SIZE

TINY = SIZE._replace(tokens=2, hidden_size=8)


def test_generation_goes_on_with_as_many_sequences_as_the_size_says():
    group = build_model(TINY, GENERATE, Options(backends=("sorted",)))
    assert [arm.name for arm in group.arms] == ["sorted", DENSE_TWIN, STOCK_GPT2]
    assert [arm.family for arm in group.arms[1:]] == [ROOF, ROOF]
    assert group.arms[0].step().shape == (2, PROMPT + NEW_TOKENS)
    assert compare(group.arms).errors["sorted"] < 1e-5


def test_a_training_step_hardly_moves_the_weights():
    group = build_model(TINY, TRAINING, Options(backends=("sorted",)))
    arm = group.arms[0]
    before = arm.check.output()[0]
    arm.step()
    torch.testing.assert_close(arm.check.output()[0], before, atol=1e-4, rtol=0)


def test_the_goals_hold_the_mixture_against_both_dense_models():
    assert [goal.below for goal in MODEL_GOALS] == [STOCK_GPT2, DENSE_TWIN]
    assert not any(goal.higher for goal in MODEL_GOALS)
