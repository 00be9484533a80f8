"""The report of mixers: goals first, then pictures, perplexity and every case."""

import json
from pathlib import Path

from moe_hf.bench.harness.arms import (
    DECODE,
    FORWARD,
    PEER,
    TRAINING,
)
from moe_hf.bench.harness.cases import Goal, goals_of
from moe_hf.bench.harness.report import write_report
from moe_hf.bench.harness.results import ArmResult, GroupResult, Report
from moe_hf.bench.harness.timing import Samples
from moe_hf.bench.mixers.attention_arms import FULL, TOPK
from moe_hf.bench.mixers.layers import KINDS, layer_case
from moe_hf.bench.mixers.report import LENGTHS, MIXERS_PAGE, PERPLEXITIES, draw_lengths
from moe_hf.bench.mixers.sizes import LayerSize, Point


def test_the_report_holds_goals_first_and_every_picture(tmp_path: Path) -> None:
    size = LayerSize(64, 8)
    goal = Goal("faster", 1.0, ("first", "same"), "nothing to compare", by_round=True)
    cases = [layer_case("two", mode, size, list, goal) for mode in (FORWARD, DECODE)]
    seconds = {"first": 2.0, "same": 3.0, "nothing to compare": 1.0}
    arms = [ArmResult(name, PEER, Samples(1, [value, value], [0, 1])) for name, value in seconds.items()]
    results = [GroupResult("two", mode, size, "cpu", arms, []) for mode in (FORWARD, DECODE)]
    points = [
        Point(kind, mode, length, 1e-3 * length, 1000 * length)
        for kind in KINDS
        for mode in (FORWARD, TRAINING)
        for length in (512, 1024)
    ]
    further = {PERPLEXITIES: {FULL: 4.0, TOPK: 4.02}, LENGTHS: points}
    report = Report("title", "moe-hf bench --suite mixers", 0, {"cores": 2}, results, further=further)
    written = write_report(report, tmp_path, MIXERS_PAGE, goals_of(cases))
    assert [path.name for path in written] == [
        "report.md",
        "report.json",
        "time_by_length.png",
        "memory_by_length.png",
    ]
    assert all(path.stat().st_size > 0 for path in written)
    text = written[0].read_text()
    assert text.index("## Numbers to reach") < text.index("(time_by_length.png)")
    assert "| faster | >= 1 | 2.00 to 2.00 (worst: two, forward, 8 tokens, width 64) | met |" in text
    assert "| top-k of 64 keys | 4.020 | +0.50% |" in text
    assert "**two, decode, after 8 tokens, width 64, per token**" in text
    assert json.loads(written[1].read_text())["lengths"][0] == points[0]._asdict()


def test_nothing_measured_draws_nothing(tmp_path: Path) -> None:
    assert draw_lengths(Report("title", "command", 0, {}, []), tmp_path) == []
