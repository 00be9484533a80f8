"""The pictures of a report of experts: only those that it has the numbers for."""

from moe_hf.bench.harness.arms import OWN
from moe_hf.bench.speed.plots import draw_plots
from moe_hf.bench.speed.utilization import Utilization
from tests.bench.measured import SMALL, group, report


def names(drawn):
    return sorted(path.name for path in drawn)


def test_one_size_has_no_growth_and_one_mode_no_memory(tmp_path):
    assert names(draw_plots(report(group()), [], tmp_path)) == ["ratio_to_roof_experts.png"]


def test_growth_is_drawn_where_sizes_differ_in_that_number_alone(tmp_path):
    several = [group(size=SMALL._replace(tokens=tokens)) for tokens in (64, 128)]
    assert "growth_tokens_experts.png" in names(draw_plots(report(*several), [], tmp_path))
    mixed = [group(size=SMALL._replace(tokens=64 * k, k=k)) for k in (1, 2)]
    assert names(draw_plots(report(*mixed), [], tmp_path)) == ["ratio_to_roof_experts.png"]


def test_temporary_memory_is_drawn_of_arms_that_return_gradients(tmp_path):
    one = group(mode="training", peaks=2**20)
    without = one._replace(arms=[arm._replace(saved_bytes=None) for arm in one.arms])
    assert "memory_experts.png" not in names(draw_plots(report(without), [], tmp_path))
    arms = [arm._replace(gradient_bytes=100) if arm.family == OWN else arm for arm in without.arms]
    assert "memory_experts.png" in names(draw_plots(report(without._replace(arms=arms)), [], tmp_path))


def test_the_number_of_experts_is_in_the_name_where_it_tells_files_apart(tmp_path):
    used = Utilization("top_k", 4, 2, None, [3, 5, 4, 4], [3, 5, 4, 4], 4.0, 0.0)
    assert names(draw_plots(report(), [used], tmp_path)) == ["expert_utilization_k2_cfnone.png"]
    both = [used, used._replace(num_experts=2, offered=[8, 8], kept=[8, 8], fair=8.0)]
    assert names(draw_plots(report(), both, tmp_path)) == [
        "expert_utilization_k2_cfnone_E2.png",
        "expert_utilization_k2_cfnone_E4.png",
    ]
