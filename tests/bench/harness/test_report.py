"""One report writer: JSON and Markdown that appear whole, with what the suite says around the numbers."""

import json

from moe_hf.bench.harness.cases import Goal
from moe_hf.bench.harness.report import (
    Page,
    goals_section,
    machine_table,
    pictures_section,
    write_json,
    write_report,
    write_report_json,
)
from tests.bench.measured import group, report

GOAL = Goal("q", 1.0, "grouped_mm", "auto", case="experts", mode="forward")


def page(drawn=()):
    def draw(report, folder):
        for name in drawn:
            (folder / name).write_bytes(b"PNG")
        return [folder / name for name in drawn]

    def text(report, verdicts, pictures):
        yield from goals_section(verdicts, "words")
        yield from pictures_section("Pictures", pictures)

    return Page(text, draw)


def test_the_page_s_paragraphs_stand_under_the_title(tmp_path):
    written = write_report(report(group()), tmp_path / "new", page(["a_b.png"]), [GOAL])
    assert [path.name for path in written] == ["report.md", "report.json", "a_b.png"]
    title, heading, words, table, *pictures = written[0].read_text().strip().split("\n\n")
    assert (title, heading, words) == ("# title", "## Numbers to reach", "words")
    assert "| q | >= 1 | 1.50 " in table
    assert pictures == ["## Pictures", "![a b](a_b.png)"]


def test_without_goals_and_pictures_their_sections_are_left_out(tmp_path):
    write_report(report(group()), tmp_path, page())
    assert (tmp_path / "report.md").read_text() == "# title\n"


def test_the_json_holds_verdicts_and_further_data_beside_the_groups(tmp_path):
    file = write_report_json(report(group(), further={"lengths": [1]}), tmp_path, [GOAL])
    data = json.loads(file.read_text())
    assert data["goals"][0]["verdict"] == "met"
    assert data["goals"][0]["values"][0]["number"] == 1.5
    assert data["lengths"] == [1]
    assert data["groups"][0]["skipped"][0]["name"] == "batched_mm"


def test_json_is_written_into_a_new_folder_and_nothing_stands_beside_it(tmp_path):
    file = write_json({"a": 1}, tmp_path / "b" / "c.json")
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(file.parent.iterdir()) == [file]


def test_the_machine_s_table_leaves_out_what_is_not_known():
    machine = {"gpu": None, "environment": {"A": "b c"}, "load": [0.1, 0.2], "triton": ""}
    text = machine_table(report()._replace(machine=machine))
    assert "gpu" not in text
    assert "| environment | A='b c' |" in text
    assert "| load | 0.1, 0.2 |" in text
