"""Rows of text for Markdown and the terminal, and pages whose marked places are filled."""

from pathlib import Path

from moe_hf.bench.harness.arms import OWN, TRANSFORMERS
from moe_hf.bench.harness.cases import Goal
from moe_hf.bench.harness.goals import Value, Verdict
from moe_hf.bench.harness.results import ArmResult, GroupResult
from moe_hf.bench.harness.tables import arm_table, fill_page, filled, goal_table
from tests.bench.measured import SMALL, arm, group


def test_an_arm_s_row_says_how_it_stands_to_the_best_the_default_and_the_roof():
    columns, rows = arm_table(group(mode="training", saved=640))
    of_auto = dict(zip(columns, rows[2], strict=True))
    assert of_auto["x best"] == "1.50"
    assert of_auto["x grouped"] == "1.50"
    assert of_auto["/ roof"] == "0.80"
    assert of_auto["of GEMM"] == "50%"
    assert of_auto["saved B/tok"] == "10"
    assert "peak MiB" not in columns


def test_without_a_roof_nothing_is_compared():
    arms = [arm("auto, E=8", OWN, 1.0), arm("grouped_mm", TRANSFORMERS, 2.0)]
    columns, _ = arm_table(GroupResult("growth", "forward", SMALL, "cpu", arms, []))
    assert "x best" not in columns


def test_an_arm_that_was_not_timed_has_bytes_alone():
    arms = [ArmResult("a", OWN, peak_bytes=3 << 20)]
    assert arm_table(GroupResult("c", "forward", SMALL, "cpu", arms, [])) == (["arm", "peak MiB"], [["a", "3.0"]])


def test_empty_columns_are_left_out():
    assert filled(["a", "b", "c"], [["1", "", ""], ["2", "", "3"]]) == (["a", "c"], [["1", ""], ["2", "3"]])


def test_a_goal_s_row_tells_the_worst_value_and_its_place():
    goal = Goal("time", 1.2, "a", "b", 1.1, higher=False)
    verdict = Verdict(goal, [Value("here", 1.0), Value("there", 1.15, paired=1.14)])
    columns, rows = goal_table([verdict])
    assert columns[1:3] == ["must", "goal"]
    assert rows == [["time", "<= 1.2", "<= 1.1", "1.15 to 1.00 (worst: there, paired 1.14)", "met, goal met in 1 of 2"]]
    assert goal_table([verdict], with_place=False)[1][0][3] == "1.15 to 1.00"


def test_filling_twice_changes_nothing_and_no_page_is_made(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    assert not fill_page(page, "runs", "text")
    assert not page.exists()
    page.write_text("a\n<!-- measured: runs -->\n<!-- end of runs -->\nb\n")
    assert fill_page(page, "runs", r"| \1 |")
    once = page.read_text()
    assert once == "a\n<!-- measured: runs -->\n\n| \\1 |\n\n<!-- end of runs -->\nb\n"
    assert fill_page(page, "runs", r"| \1 |")
    assert page.read_text() == once
    assert not fill_page(page, "layers", "text")
