"""The experts alone: every backend on one set of weights, compared in value and gradient before it is timed."""

import pytest
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe_hf.bench.harness.arms import FUSED, OWN, TRAINING, TRANSFORMERS, Options
from moe_hf.bench.harness.goals import judge
from moe_hf.bench.speed.experts_case import build_experts
from moe_hf.bench.speed.growth import FEW, MANY, at
from moe_hf.bench.speed.growth_case import build_growth
from moe_hf.bench.speed.layer_cases import build_layer
from moe_hf.bench.speed.sizes import SMALL_WIDTHS, expert_gradient_bytes
from moe_hf.bench.speed.suites import CPU_GOALS
from moe_hf.layers.experts.interface import OWN_EXPERTS_FUNCTIONS
from tests.bench.measured import SIZE, SMALL, group, measure, numbers, reasons


@pytest.fixture(scope="module")
def forward():
    return measure(build_experts, SIZE._replace(activation="gelu_new"), "forward")


@pytest.fixture(scope="module")
def training():
    return measure(build_experts, SIZE, TRAINING)


def test_every_backend_that_runs_here_is_right_and_measured(forward):
    by_family = {family: [arm.name for arm in forward.arms if arm.family == family] for family in (TRANSFORMERS, OWN)}
    assert by_family[TRANSFORMERS] == ["eager", "grouped_mm", "batched_mm"]
    assert {"sorted", "auto", "sorted packed"} <= set(by_family[OWN])
    assert all(arm.error < 1e-5 for arm in forward.arms if arm.family in by_family)
    assert all(len(arm.samples.seconds) == 2 for arm in forward.arms)


def test_rounded_weights_are_measured_where_weights_decide_and_their_widths_allow_it(forward):
    names = {"8 bits", "4 bits"}
    assert not names & {arm.name for arm in forward.arms}
    decoding = measure(build_experts, SIZE._replace(tokens=1), "decode")
    assert names & {arm.name for arm in decoding.arms} == {"8 bits"}
    assert "no whole groups of group_size=32" in reasons(decoding)["4 bits"]
    wide = build_experts(SIZE._replace(tokens=1, hidden_size=64, expert_width=32), "decode", Options())
    found = {arm.name: arm.step() for arm in wide.arms if arm.name in {*names, "auto"}}
    assert found.keys() == {*names, "auto"}
    for name in names:
        away = (found[name] - found["auto"]).norm() / found["auto"].norm()
        assert 1e-3 < away < {"8 bits": 0.03, "4 bits": 0.2}[name]


def test_backends_that_cannot_run_here_say_why(forward):
    found = reasons(forward)
    assert "scattermoe" in found["scattermoe"]
    assert "triton" in found["triton"]


def test_composed_activation_of_transformers_has_an_arm_with_one_kernel_beside_it(forward, training):
    assert [arm.name for arm in forward.arms if arm.family == FUSED] == ["grouped_mm, one kernel"]
    assert not [arm.name for arm in training.arms if arm.family == FUSED]


def test_gradient_bytes_are_those_of_all_leaves():
    group = build_experts(SIZE, TRAINING, Options())
    x_TD, *weights = next(arm for arm in group.arms if arm.name == "eager").known()
    leaves = [x_TD, *weights]
    routing = SIZE.tokens * SIZE.k * 4
    returned = group.arms[0].gradient_bytes
    assert returned == sum(leaf.numel() * 4 for leaf in leaves) + routing == expert_gradient_bytes(SIZE)


def test_saved_bytes_are_what_each_backend_keeps(training):
    saved = {arm.name: arm.saved_bytes for arm in training.arms}
    rows, width, inner = 48, 16, 32
    # The dense MLP keeps its hidden rows before and after the activation; its input is there anyway.
    assert saved["dense MLP"] == rows * 2 * inner * 4
    assert saved["sorted"] < saved["grouped_mm"]
    assert saved["grouped_mm"] >= rows * (2 * inner + 2 * width) * 4


def test_grouped_mm_is_skipped_for_widths_that_it_cannot_read():
    group = measure(build_experts, SIZE._replace(hidden_size=18), "forward")
    assert "multiple of" in reasons(group)["grouped_mm"] or "strides" in reasons(group)["grouped_mm"]
    assert group.arm("sorted") is not None


def test_only_the_backends_that_were_asked_for_are_measured():
    group = build_experts(SIZE, "forward", Options(backends=("sorted",)))
    assert [arm.name for arm in group.arms] == ["sorted", "dense MLP", "plain GEMM"]


def test_training_step_leaves_no_gradient_behind():
    group = build_experts(SIZE, TRAINING, Options(backends=("sorted",)))
    arm = group.arms[0]
    arm.step()
    assert all(leaf.grad is None for leaf in arm.known())


class _Halved(torch.autograd.Function):
    """Right forward, half the gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad / 2


@pytest.mark.parametrize("position", [0, 2], ids=["tokens", "routing weights"])
def test_backend_with_a_wrong_gradient_is_not_timed_in_training(monkeypatch, position):
    def broken(module, *given):
        given = [_Halved.apply(one) if index == position else one for index, one in enumerate(given)]
        return sorted_backend(module, *given)

    sorted_backend = ALL_EXPERTS_FUNCTIONS["sorted"]
    for table in (ALL_EXPERTS_FUNCTIONS._global_mapping, OWN_EXPERTS_FUNCTIONS):
        monkeypatch.setitem(table, "sorted", broken)
    for build in (build_experts, build_growth, build_layer):
        assert build is build_layer or measure(build, SIZE, "forward", backends=("sorted",)).skipped == []
        group = measure(build, SIZE._replace(tokens=9), TRAINING, backends=("grouped_mm", "sorted"))
        wrong = [skipped.name for skipped in group.skipped if skipped.wrong]
        assert wrong == ([at("sorted", FEW), at("sorted", MANY)] if build is build_growth else ["sorted"])
        assert any(arm.name.startswith("grouped_mm") and arm.error < 1e-5 for arm in group.arms)


def test_goals_read_the_groups_that_they_are_about():
    new = SMALL._replace(activation="gelu_new")
    half = SMALL._replace(dtype="bfloat16")
    groups = [
        group(),
        group(size=new, auto=(1.0, 1.0, 1.0)),
        group(size=half, auto=(4.0, 4.0, 4.0)),
        group(mode="training", size=SMALL._replace(tokens=512)),
        group(mode="training"),
        group(mode="decode", size=SMALL._replace(tokens=8)),
    ]
    assert numbers("forward, gelu, vs the best transformers backend", *groups) == [1.5]
    assert numbers("the same, weights packed for inference", *groups) == [2.0]
    assert numbers("forward, gelu_new, vs grouped_mm", *groups) == [3.0]
    assert numbers("bf16 forward vs the best", *groups) == [0.75]
    # 32 rows per expert are too few for this one, 256 are enough.
    assert numbers("forward+backward, time / dense, >= 256 rows per expert", *groups) == [0.8]
    assert numbers("decode, T=8, vs the best", *groups) == [1.5]
    assert numbers("decode, T=1, vs the best", *groups) == []


def test_small_widths_count_in_their_own_rows_only():
    groups = [group(mode=mode, size=size) for mode in ("forward", "training") for size in SMALL_WIDTHS]
    filled = {verdict.goal.quantity: len(verdict.values) for verdict in judge(CPU_GOALS, groups) if verdict.values}
    assert filled == {"small widths, forward, vs the best": 2, "small widths, forward+backward, vs the best": 2}


def test_memory_goals_compare_bytes_kept_for_backward():
    allowed_per_token = 2 * 16 * 4 * 1.05 + 128
    one = group(mode="training", saved=6400)
    assert numbers("saved for backward / (kF x itemsize x 1.05 + 128), gelu", one) == [
        round(100 / allowed_per_token, 4)
    ]
    assert numbers("saved for backward / grouped_mm, gelu", one) == [0.25]
