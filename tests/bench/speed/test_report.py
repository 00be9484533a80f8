import json

import pytest

from moe_hf.bench.harness.timing import Samples
from moe_hf.bench.speed.arms import GEMM, OWN, ROOF, TRANSFORMERS, Skipped
from moe_hf.bench.speed.goals import CPU_GOALS, GPU_GOALS, SMALL_WIDTHS, Goal, Value, Verdict, judge
from moe_hf.bench.speed.growth_case import FEW, MANY, at, split_by_experts
from moe_hf.bench.speed.report import read_report, report_text, write_report
from moe_hf.bench.speed.results import ArmResult, GroupResult, Report, from_json, to_json
from moe_hf.bench.speed.sizes import Size, expert_gradient_bytes
from moe_hf.bench.speed.suites import SUITES, cpu_jobs
from moe_hf.bench.speed.utilization import Utilization

SIZE = Size(tokens=64, hidden_size=8, expert_width=16, num_experts=4, k=2)


def arm(name, family, *milliseconds, flops=1e6, saved=None, peak=None):
    seconds = [1e-3 * value for value in milliseconds]
    return ArmResult(name, family, Samples(1, seconds, list(range(len(seconds)))), flops, 0.0, saved, peak)


def group(case="experts", mode="forward", size=SIZE, auto=(2.0, 2.0, 2.0), saved=None, peaks=None):
    arms = [
        arm("eager", TRANSFORMERS, 6.0, 6.0, 6.0),
        arm("grouped_mm", TRANSFORMERS, 3.0, 3.0, 3.3, saved=saved and 4 * saved),
        arm("auto", OWN, *auto, saved=saved, peak=peaks),
        arm("sorted packed", OWN, 1.5, 1.5, 1.5),
        arm("dense MLP", ROOF, 2.5, 2.5, 2.5),
        arm("plain GEMM", GEMM, 0.5, 0.5, 0.5, flops=5e5),
    ]
    return GroupResult(case, mode, size, "cpu", arms, [Skipped("batched_mm", "gathers | too much")])


def report(*groups, **fields):
    return Report("title", "moe-hf bench x", 3, {"processor": "one", "load": [0.1, 0.2]}, list(groups), **fields)


def numbers(quantity, *groups):
    goal = next(goal for goal in CPU_GOALS if goal.quantity == quantity)
    return [round(value.number, 4) for value in goal.measure(groups)]


def test_ratios_are_times_faster_than_the_best_and_time_over_the_roof():
    one = group()
    assert one.best().name == "grouped_mm"
    assert one.speedup("auto", one.best()).of_medians == pytest.approx(1.5)
    assert one.speedup("auto", one.arm("eager")).of_medians == pytest.approx(3.0)
    assert one.to_roof("auto").of_medians == pytest.approx(0.8)
    # 1e6 FLOPs in 2 ms against 5e5 in 0.5 ms.
    assert one.arm("auto").gflops == pytest.approx(0.5)
    assert one.gemm_share("auto") == pytest.approx(0.5)


def test_json_gives_the_same_report_back():
    before = report(group(), group(mode="training", saved=640, peaks=5000), interrupted=True)
    data = json.loads(json.dumps(to_json(before)))
    assert from_json(data) == before
    assert data["groups"][0]["arms"][2]["median"] == pytest.approx(2e-3)


def test_goals_read_the_groups_that_they_are_about():
    new = SIZE._replace(activation="gelu_new")
    half = SIZE._replace(dtype="bfloat16")
    groups = [
        group(),
        group(size=new, auto=(1.0, 1.0, 1.0)),
        group(size=half, auto=(4.0, 4.0, 4.0)),
        group(mode="training", size=SIZE._replace(tokens=512)),
        group(mode="training"),
        group(mode="decode", size=SIZE._replace(tokens=8)),
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


def test_growth_goals_compare_many_experts_with_few_in_one_group():
    returned = [expert_gradient_bytes(SIZE._replace(num_experts=count)) for count in (FEW, MANY)]
    arms = [
        arm(at("auto", FEW), OWN, 2.0, 2.0, peak=returned[0] + 1000),
        arm(at("auto", MANY), OWN, 3.0, 3.0, peak=returned[1] + 1100),
    ]
    one = GroupResult("growth", "training", SIZE, "cpu", arms, [])
    assert numbers("growth: forward+backward E 64 / E 8", one) == [1.5]
    assert numbers("growth: forward E 64 / E 8", one) == []
    assert numbers("growth: temporaries without returned gradients", one) == [1.1]


def test_growth_group_is_drawn_as_one_group_per_number_of_experts(tmp_path):
    arms = [arm(at(name, count), OWN, 1.0, 2.0, saved=64) for count in (FEW, MANY) for name in ("auto", "grouped_mm")]
    one = GroupResult("growth", "training", SIZE, "cpu", arms, [])
    few, many = split_by_experts(one)
    assert [part.size.num_experts for part in (few, many)] == [8, 64]
    assert [a.name for a in few.arms] == [a.name for a in many.arms] == ["auto", "grouped_mm"]
    assert split_by_experts(group()) == [group()]
    assert {path.name for path in write_report(report(one), tmp_path)} == {
        *("report.md", "report.json", "growth_experts_growth.png", "memory_growth.png"),
    }


@pytest.mark.parametrize(
    ("higher", "values", "text"),
    [
        (True, [], "not measured"),
        (True, [1.1, 1.5], "met, goal met in 1 of 2"),
        (True, [1.3, 1.5], "met, goal met"),
        (True, [1.0, 1.5], "MISSED in 1 of 2"),
        (False, [1.0, 1.05], "met, goal met"),
        (False, [1.15], "met, goal met in 0 of 1"),
        (False, [1.3, 1.0], "MISSED in 1 of 2"),
        (True, [1.045], "MISSED in 1 of 1"),
        (False, [1.2049], "MISSED in 1 of 1"),
    ],
)
def test_verdict_is_decided_by_the_worst_value(higher, values, text):
    must, hoped = (1.05, 1.2) if higher else (1.2, 1.1)
    verdict = Verdict(Goal("q", must, hoped, higher, lambda groups: []), [Value("here", v) for v in values])
    assert verdict.text == text
    if values:
        assert verdict.worst.number == (min(values) if higher else max(values))


def test_report_ends_with_the_goals_and_says_what_was_skipped():
    text = report_text(report(group()), CPU_GOALS)
    table = text[text.index("## Numbers to reach") :]
    row = next(line for line in table.splitlines() if line.startswith("| forward, gelu, vs the best"))
    measured = "1.50 (worst: 64x8x16 E4 k2, fp32 gelu, 1 thread, paired 1.50)"
    assert row.split(" | ")[1:] == [">= 1.05", ">= 1.15", measured, "met, goal met |"]
    assert table.count("not measured") == len(CPU_GOALS) - len([v for v in judge(CPU_GOALS, [group()]) if v.values])
    assert "batched_mm: gathers" in text
    assert "Interrupted" not in text
    assert "Interrupted" in report_text(report(group(), interrupted=True))


def test_written_report_holds_what_was_measured(tmp_path):
    sizes = [SIZE, SIZE._replace(tokens=128), SIZE._replace(num_experts=8)]
    before = report(*[group(mode="training", size=size, saved=640, peaks=2**20) for size in sizes])
    used = [Utilization("top_k", 4, 2, 1.25, [3, 5, 4, 4], [3, 4, 4, 4], 4.0, 1 / 16)]
    written = {path.name for path in write_report(before, tmp_path, CPU_GOALS, used)}
    pictures = {
        *("ratio_to_roof_experts.png", "growth_tokens_experts.png", "growth_experts_experts.png"),
        *("memory_experts.png", "expert_utilization_k2_cf1.25.png"),
    }
    assert written == {"report.md", "report.json", *pictures} == {path.name for path in tmp_path.iterdir()}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert read_report(tmp_path) == before
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["utilization"][0]["kept"] == [3, 4, 4, 4]
    assert {goal["quantity"] for goal in data["goals"]} == {goal.quantity for goal in CPU_GOALS}
    text = (tmp_path / "report.md").read_text()
    assert all(f"]({name})" in text for name in pictures)
    assert "64x8x16 E4 k2" in text


def test_cpu_suite_has_groups_for_every_row_of_its_table():
    for quick in (True, False):
        groups = []
        for job in cpu_jobs(quick):
            case = "growth" if "growth" in job.build.__name__ else job.build.__name__.removeprefix("build_")
            made = group(case, job.mode, job.size, saved=640 if job.memory else None, peaks=2**30)
            if case == "growth":
                arms = [arm(at("auto", count), OWN, 1.0, peak=2**40) for count in (FEW, MANY)]
                made = made._replace(arms=arms)
            if case == "model":
                made = made._replace(arms=[arm(n, OWN, 1.0) for n in ("auto", "dense twin", "transformers' GPT-2")])
            groups.append(made)
        assert [verdict.goal.quantity for verdict in judge(CPU_GOALS, groups) if not verdict.values] == []


def test_suites_name_their_device_and_goals():
    assert (SUITES["cpu"].goals, SUITES["gpu"].goals) == (CPU_GOALS, GPU_GOALS)
    assert all(job.size.dtype == "bfloat16" for job in SUITES["gpu"].jobs(False))
