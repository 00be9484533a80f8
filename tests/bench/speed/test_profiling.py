import json

from moe_hf.bench.harness.arms import Options
from moe_hf.bench.speed.profile_report import write_profile_reports
from moe_hf.bench.speed.profiling import default_profiles
from moe_hf.bench.speed.sizes import Size

SIZE = Size(tokens=16, hidden_size=8, expert_width=16, num_experts=4)


def test_reports_and_traces_are_written_for_every_part(tmp_path):
    profiles = default_profiles(SIZE, Options(), "sorted", "grouped_mm", steps=1, traces=tmp_path)
    arms = {part: [profile.arm for profile in of] for part, of in profiles.items()}
    both = ["sorted", "grouped_mm"]
    assert arms == {"router": ["top_k"], "moe_layer": both, "block": both, "train_step": both}
    assert all(of[0].operators and of[0].shares["gemm"] > 0 for of in profiles.values())
    written = {path.name for path in write_profile_reports(profiles, {"torch": "2"}, "moe-hf profile", tmp_path)}
    assert written == {
        *("consolidated_profiling_report.md", "router_profiling_report.md", "moe_layer_profiling_report.md"),
        *("block_profiling_report.md", "train_step_profiling_report.md", "profile.json"),
    }
    data = json.loads((tmp_path / "profile.json").read_text())
    assert len(data["profiles"]) == 7
    trace = json.loads((tmp_path / "trace_moe_layer_sorted.json").read_text())
    assert any(event["name"] == "aten::index_select" for event in trace["traceEvents"])
    text = (tmp_path / "moe_layer_profiling_report.md").read_text()
    assert "## Hot spots" in text
    assert "(trace_moe_layer_grouped_mm.json)" in text
