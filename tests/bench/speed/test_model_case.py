"""The whole model: one mixture per backend beside two dense models, the same tokens for all."""

import pytest
import torch

from moe_hf.bench.harness.arms import GENERATE, OWN, ROOF, TRAINING, Options
from moe_hf.bench.harness.comparison import compare
from moe_hf.bench.speed.model_case import (
    DENSE_TWIN,
    EVERY_LAYER,
    EVERY_OTHER,
    FINE_STEP,
    MODEL_GOALS,
    NEW_TOKENS,
    PROMPT,
    STEP_GOALS,
    STOCK_GPT2,
    TINY_STEP,
    _tiny,
    build_model,
    build_step,
)
from moe_hf.config.presets import create_moe_config
from moe_hf.models.info import get_moe_model_info
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


def test_steps_with_muon_compute_what_the_reference_does():
    group = build_step(FINE_STEP._replace(tokens=6, hidden_size=16, expert_width=8, num_experts=4), TRAINING, Options())
    assert [(arm.name, arm.family) for arm in group.arms] == [
        (EVERY_OTHER, OWN),
        (EVERY_LAYER, OWN),
        (DENSE_TWIN, ROOF),
    ]
    found = compare(group.arms)
    assert not found.skipped
    assert max(found.errors.values()) < 1e-4
    for arm in group.arms:
        arm.step()


def test_the_recipes_models_generate_by_the_logits_of_the_reference():
    size = FINE_STEP._replace(tokens=1, hidden_size=16, expert_width=8, num_experts=4)
    group = build_step(size, GENERATE, Options())
    assert [arm.name for arm in group.arms] == [EVERY_OTHER, EVERY_LAYER, DENSE_TWIN]
    assert max(compare(group.arms).errors.values()) < 1e-4
    assert {arm.step().shape for arm in group.arms} == {(1, 32)}


@pytest.mark.parametrize("size", [TINY_STEP, FINE_STEP])
def test_the_dense_twin_has_the_active_size(size):
    layers = ["sparse", "dense"] * 2
    sparse, dense = (_tiny(size, kind, Options()) for kind in (layers, ["dense"] * 4))
    info = get_moe_model_info(sparse.config)
    routers = 2 * 128 * size.num_experts
    # The shared expert and each of the K experts have a bias of the output of their own.
    assert info["active_params"] - routers - 2 * size.k * 128 == dense.num_parameters()


def test_the_tiny_step_is_the_presets():
    own, preset = _tiny(TINY_STEP, ["sparse", "dense"] * 2, Options()).config, create_moe_config("tiny")
    # Left out, the layers are the same.
    own.mlp_layer_types, own.dtype = None, preset.dtype
    assert own.to_dict() == preset.to_dict()


def test_each_goal_of_the_step_counts_its_own_size():
    assert [[goal.sizes(size) for size in (TINY_STEP, FINE_STEP)] for goal in STEP_GOALS] == [
        [True, False],
        [False, True],
    ]
