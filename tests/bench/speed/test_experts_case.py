import pytest
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from moe_hf.base.errors import ConfigError
from moe_hf.bench.harness.timing import SamplingPlan
from moe_hf.bench.speed.arms import FUSED, OWN, ROOF, TRAINING, TRANSFORMERS, Arm, Check, Group, Options, Skipped
from moe_hf.bench.speed.cases import CASES
from moe_hf.bench.speed.comparison import relative_errors
from moe_hf.bench.speed.experts_case import build_experts
from moe_hf.bench.speed.growth_case import FEW, MANY, at, build_growth
from moe_hf.bench.speed.layer_cases import build_block, build_layer
from moe_hf.bench.speed.opponents import StockExperts, draw_weights
from moe_hf.bench.speed.reference import ReferenceExperts
from moe_hf.bench.speed.routes import draw_routes
from moe_hf.bench.speed.runner import Job, run_jobs
from moe_hf.bench.speed.sizes import Size, expert_flops, expert_gradient_bytes, sweep

SIZE = Size(tokens=24, hidden_size=16, expert_width=32, num_experts=4, k=2)
PLAN = SamplingPlan(budget=0.0, min_rounds=2, min_sample=0.0)


def measure(build, size, mode, **options):
    measured = run_jobs([Job(build, size, mode)], Options(**options), PLAN, "cpu")
    assert not measured.interrupted
    return measured.groups[0]


def reasons(group):
    return {skipped.name: skipped.reason for skipped in group.skipped}


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


def test_backends_that_cannot_run_here_say_why(forward):
    found = reasons(forward)
    assert "scattermoe" in found["scattermoe"]
    assert "triton" in found["triton"]


def test_composed_activation_of_transformers_has_an_arm_with_one_kernel_beside_it(forward, training):
    assert [arm.name for arm in forward.arms if arm.family == FUSED] == ["grouped_mm, one kernel"]
    assert not [arm.name for arm in training.arms if arm.family == FUSED]


def test_flops_follow_from_the_size():
    # Two projections, a multiply-add per weight and row; backward is two products for each.
    assert expert_flops(SIZE, training=False) == 2 * (24 * 2) * (16 * 32 + 32 * 16)
    assert expert_flops(SIZE, training=True) == 3 * expert_flops(SIZE, training=False)


def test_gradient_bytes_are_those_of_all_leaves():
    group = build_experts(SIZE, TRAINING, Options())
    x_TD, *weights = next(arm for arm in group.arms if arm.name == "eager").known()
    leaves = [x_TD, *weights]
    routing = SIZE.tokens * SIZE.k * 4
    assert group.gradient_bytes == sum(leaf.numel() * 4 for leaf in leaves) + routing == expert_gradient_bytes(SIZE)


def test_saved_bytes_are_what_each_backend_keeps(training):
    saved = {arm.name: arm.saved_bytes for arm in training.arms}
    rows, width, inner = 48, 16, 32
    # The dense MLP keeps its hidden rows before and after the activation; its input is there anyway.
    assert saved["dense MLP"] == rows * 2 * inner * 4
    assert saved["sorted"] < saved["grouped_mm"]
    assert saved["grouped_mm"] >= rows * (2 * inner + 2 * width) * 4


def test_batched_mm_is_skipped_where_it_would_gather_too_much():
    group = build_experts(SIZE, "forward", Options(memory_limit=1000))
    assert "gathers" in reasons(group)["batched_mm"]
    assert "batched_mm" not in [arm.name for arm in group.arms]


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


def test_capacity_limits_what_all_backends_compute():
    size = SIZE._replace(capacity_factor=0.5)
    expert_TK = draw_routes(size, torch.Generator().manual_seed(0)).expert_TK
    assert expert_TK.flatten().bincount(minlength=5)[:4].max() <= 6
    group = measure(build_experts, size, "forward")
    assert {"eager", "grouped_mm", "batched_mm", "sorted", "auto"} <= {arm.name for arm in group.arms}


def test_routes_are_distinct_balanced_without_skew_and_uneven_with_it():
    size = Size(tokens=4000, num_experts=8, k=2)
    even, uneven = (draw_routes(s, torch.Generator().manual_seed(1)) for s in (size, size._replace(skew=1.0)))
    assert (even.expert_TK[:, 0] != even.expert_TK[:, 1]).all()
    torch.testing.assert_close(even.weight_TK.sum(dim=1), torch.ones(4000))
    counts = even.expert_TK.flatten().bincount(minlength=8)
    assert (counts - 1000).abs().max() < 150
    skewed = uneven.expert_TK.flatten().bincount(minlength=8)
    assert skewed[0] > 2 * skewed[7]
    assert (skewed.diff() < 0).sum() >= 5


def test_growth_measures_few_and_many_experts_in_one_group():
    group = measure(build_growth, SIZE._replace(tokens=9), "forward", backends=("sorted",))
    assert [arm.name for arm in group.arms] == [at("sorted", FEW), at("sorted", MANY)]


def test_arm_with_a_wrong_result_is_not_timed():
    def build(size, mode, options):
        def arm(name, *values):
            return Arm(name, OWN, lambda: None, Check(lambda: [torch.tensor(values)], lambda: [torch.ones(3)]))

        arms = [arm("right", 1.0, 1.0, 1.0), arm("wrong", 1.0, 1.0, 1.1), arm("undefined", 1.0, 1.0, float("nan"))]
        return Group("experts", mode, size, arms, [])

    group = measure(build, SIZE, "forward")
    assert [arm.name for arm in group.arms] == ["right"]
    assert [skipped.name for skipped in group.skipped if skipped.wrong] == ["wrong", "undefined"]


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
    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS._global_mapping, "sorted", broken)
    for build in (build_experts, build_growth, build_layer):
        assert build is build_layer or measure(build, SIZE, "forward", backends=("sorted",)).skipped == []
        group = measure(build, SIZE._replace(tokens=9), TRAINING, backends=("grouped_mm", "sorted"))
        wrong = [skipped.name for skipped in group.skipped if skipped.wrong]
        assert wrong == ([at("sorted", FEW), at("sorted", MANY)] if build is build_growth else ["sorted"])
        assert any(arm.name.startswith("grouped_mm") and arm.error < 1e-5 for arm in group.arms)


def test_wrong_gradient_of_a_bias_shows_beside_the_large_gradients_of_the_weights():
    expected = [torch.ones(2), torch.full((100, 100), 3.0), torch.ones(4)]
    found = [*expected[:2], torch.full((4,), 1.5)]
    assert relative_errors(found, expected) == pytest.approx([0.0, 0.0, 0.5])


def test_gradient_that_is_rounding_noise_alone_is_no_error():
    expected = [torch.ones(2), torch.ones(100), torch.tensor([1e-9, -1e-9])]
    found = [*expected[:2], torch.tensor([-1e-9, 2e-9])]
    assert max(relative_errors(found, expected)) < 1e-6


def test_reference_has_no_backend_in_it_and_skips_slots():
    weights = draw_weights(SIZE, Options())
    x_TD, weight_TK = torch.randn(3, 16), torch.tensor([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]])
    expert_TK = torch.tensor([[0, 3], [4, 2], [4, 4]])
    found_TD = ReferenceExperts(weights, "gelu")(x_TD, expert_TK, weight_TK)

    def expert(token, index):
        hidden = torch.nn.functional.gelu(weights.up_proj[index] @ x_TD[token] + weights.up_proj_bias[index])
        return weights.down_proj[index] @ hidden + weights.down_proj_bias[index]

    torch.testing.assert_close(found_TD[0], 0.25 * expert(0, 0) + 0.75 * expert(0, 3))
    torch.testing.assert_close(found_TD[1], 0.5 * expert(1, 2))
    assert not found_TD[2].any()


@pytest.mark.parametrize("case", ["experts", "layer", "block", "model"])
def test_backends_are_right_in_bfloat16_too(case):
    size = SIZE._replace(tokens=40, dtype="bfloat16", activation="gelu_new")
    group = measure(CASES[case].build, size, TRAINING, backends=("eager", "grouped_mm", "sorted"))
    assert {"eager", "grouped_mm", "sorted"} <= {arm.name for arm in group.arms}


def test_further_arm_is_made_after_its_own_was_found_right_and_is_compared_too():
    def build(size, mode, options):
        def arm(name, value, **fields):
            check = Check(lambda: [torch.tensor([value])], lambda: [torch.ones(1)])
            return Arm(name, OWN, lambda: None, check, **fields)

        arms = [
            arm("right", 1.0, further=lambda: arm("captured", 1.0)),
            arm("other", 1.0, further=lambda: arm("broken", 2.0)),
            arm("third", 1.0, further=lambda: Skipped("fourth", "cannot be captured")),
            arm("wrong", 2.0, further=lambda: pytest.fail("made of a wrong arm")),
        ]
        return Group("experts", mode, size, arms, [])

    group = measure(build, SIZE, "forward")
    assert [arm.name for arm in group.arms] == ["right", "other", "third", "captured"]
    assert [skipped.name for skipped in group.skipped] == ["wrong", "fourth", "broken"]


def test_group_that_cannot_run_is_skipped_with_its_reason_and_the_rest_goes_on():
    def build(size, mode, options):
        def out_of_memory():
            raise torch.OutOfMemoryError("too much\nmore lines")

        if size.tokens == 1:
            raise ConfigError("tokens=1 is not allowed")
        return Group("experts", mode, size, [Arm("arm", OWN, out_of_memory if size.tokens == 2 else lambda: None)], [])

    jobs = [Job(build, SIZE._replace(tokens=tokens), "forward", False, None, "experts") for tokens in (1, 2, 3)]
    groups = run_jobs(jobs, Options(), PLAN, "cpu").groups
    assert [(group.case, group.size.tokens, len(group.arms)) for group in groups] == [
        ("experts", 1, 0),
        ("experts", 2, 0),
        ("experts", 3, 1),
    ]
    assert [group.skipped[0].reason for group in groups[:2]] == ["tokens=1 is not allowed", "too much"]


@pytest.mark.parametrize("build", [build_layer, build_block])
def test_layers_measure_transformers_own_loop_under_its_name(build, monkeypatch):
    called = []
    monkeypatch.setattr(StockExperts, "forward", _noting(StockExperts.forward, called))
    measure(build, SIZE, "forward", backends=("eager",))
    assert called


def _noting(forward, called):
    def noted(self, *given):
        called.append(type(self))
        # What the decorator of transformers wraps, which picks the backend.
        return forward(self, *given)

    return noted


def test_ctrl_c_keeps_what_was_measured():
    def build(size, mode, options):
        def stop():
            raise KeyboardInterrupt

        return Group("experts", mode, size, [Arm("arm", OWN, (lambda: None) if size.tokens == 1 else stop)], [])

    jobs = [Job(build, SIZE._replace(tokens=tokens), "forward", memory=False) for tokens in (1, 2, 3)]
    threads = torch.get_num_threads()
    measured = run_jobs(jobs, Options(), PLAN, "cpu")
    assert measured.interrupted
    assert [group.size.tokens for group in measured.groups] == [1]
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("case", ["router", "layer", "block", "model"])
def test_every_case_measures_its_modes(case):
    size = SIZE._replace(tokens=8, hidden_size=8)
    for mode in CASES[case].modes:
        options = Options(backends=("eager", "sorted"))
        group = run_jobs([Job(CASES[case].build, size, mode, case != "model")], options, PLAN, "cpu").groups[0]
        names = {arm.name for arm in group.arms}
        assert group.first_of(ROOF) is not None
        assert names >= ({"top_k", "sigmoid_bias"} if case == "router" else {"eager", "sorted"})


def test_sweep_is_every_combination_and_refuses_the_impossible():
    sizes = sweep(tokens=[1, 8], k=[1, 2])
    assert [(size.tokens, size.k) for size in sizes] == [(1, 1), (1, 2), (8, 1), (8, 2)]
    with pytest.raises(ConfigError, match="k=9 is not allowed; it must be at most num_experts=8"):
        sweep(k=[9])
