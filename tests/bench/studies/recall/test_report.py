"""Tables, gates and the picture say what was found."""

from moe_hf.bench.studies.recall.report import missed_gates, summarise, table, write_report
from moe_hf.bench.studies.recall.sweep import RATES
from tests.bench.studies.recall.runs import FIXED, whole_sweep


def test_the_table_has_a_line_per_mixer_and_says_which_gate_was_missed():
    rows = summarise({**whole_sweep("attention", 1.0), **whole_sweep("mamba 1", 0.5)}, FIXED)
    assert {(row.arm, row.learning_rate) for row in rows} == {("attention", RATES[1]), ("mamba 1", RATES[1])}
    lines = table(rows).splitlines()
    assert len(lines) == 4
    assert lines[2] == "| attention | 71,232 | 0.005 | 1.00 | 1.00 | 1.00 | 0.97 | 400 | 2 | 1.00 | 1.00 |"
    assert "| 0.8 missed |" in lines[3]
    assert lines[3].endswith("| 0.50 missed | 0.50 missed |")
    assert missed_gates(rows) == [
        f"mamba 1 reaches 0.500 on {task}, below its gate of {gate}"
        for task, gate in (("mqar", 0.8), ("copying", 0.97), ("induction", 0.97))
    ]


def test_what_is_half_done_has_no_line_yet():
    runs = whole_sweep("attention", 1.0)
    assert summarise({key: one for key, one in runs.items() if key.seed == 0}, FIXED) == []


def test_the_report_fills_the_page_and_draws(tmp_path):
    page = tmp_path / "mixers.md"
    page.write_text("before\n<!-- measured: recall -->\nold\n<!-- end of recall -->\nafter\n")
    write_report(summarise(whole_sweep("rwkv 7", 0.99), FIXED), tmp_path)
    assert "rwkv 7" in page.read_text()
    assert "old" not in page.read_text()
    assert (tmp_path / "data" / "recall.md").read_text().startswith("| mixer |")
    assert (tmp_path / "images" / "recall.png").stat().st_size > 1000
