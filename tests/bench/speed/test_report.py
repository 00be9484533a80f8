"""The report of experts: tables, pictures and goals."""

import json

from moe_hf.bench.harness.goals import judge
from moe_hf.bench.harness.report import report_text, write_report
from moe_hf.bench.harness.results import to_json
from moe_hf.bench.speed.report import SPEED_PAGE, UTILIZATION
from moe_hf.bench.speed.suites import CPU_GOALS
from moe_hf.bench.speed.utilization import Utilization
from tests.bench.measured import SMALL, group, report


def test_report_ends_with_the_goals_and_says_what_was_skipped():
    text = report_text(report(group()), SPEED_PAGE, CPU_GOALS)
    table = text[text.index("## Numbers to reach") :]
    row = next(line for line in table.splitlines() if line.startswith("| forward, gelu, vs the best"))
    measured = "1.50 (worst: 64x8x16 E4 k2, fp32 gelu, 1 thread, paired 1.50)"
    assert row.split(" | ")[1:] == [">= 1.05", ">= 1.15", measured, "met, goal met |"]
    assert table.count("not measured") == len(CPU_GOALS) - len([v for v in judge(CPU_GOALS, [group()]) if v.values])
    assert "batched_mm: gathers" in text
    assert "Interrupted" not in text
    assert "Interrupted" in report_text(report(group(), interrupted=True), SPEED_PAGE)


def test_written_report_holds_what_was_measured(tmp_path):
    sizes = [SMALL, SMALL._replace(tokens=128), SMALL._replace(num_experts=8)]
    used = Utilization("top_k", 4, 2, 1.25, [3, 5, 4, 4], [3, 4, 4, 4], 4.0, 1 / 16)
    groups = [group(mode="training", size=size, saved=640, peaks=2**20) for size in sizes]
    before = report(*groups, further={UTILIZATION: [used]})
    written = {path.name for path in write_report(before, tmp_path, SPEED_PAGE, CPU_GOALS)}
    pictures = {
        *("ratio_to_roof_experts.png", "growth_tokens_experts.png", "growth_experts_experts.png"),
        *("memory_experts.png", "expert_utilization_k2_cf1.25.png"),
    }
    assert written == {"report.md", "report.json", *pictures} == {path.name for path in tmp_path.iterdir()}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["groups"] == json.loads(json.dumps(to_json(before)["groups"]))
    assert data["utilization"][0]["kept"] == [3, 4, 4, 4]
    assert {goal["quantity"] for goal in data["goals"]} == {goal.quantity for goal in CPU_GOALS}
    text = (tmp_path / "report.md").read_text()
    assert all(f"]({name})" in text for name in pictures)
    assert "64x8x16 E4 k2" in text
