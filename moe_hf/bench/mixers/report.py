"""Writes what was measured of the mixers: report.md to read, report.json with every sample, and the pictures."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from moe_hf.base.files import whole_file
from moe_hf.bench.harness.spread import spread
from moe_hf.bench.mixers.cases import DECODE, Case, CaseResult
from moe_hf.bench.mixers.goals import verdicts
from moe_hf.bench.mixers.lengths import Point
from moe_hf.bench.mixers.perplexity import FULL
from moe_hf.bench.mixers.plots import draw_lengths
from moe_hf.bench.speed.goals import Verdict
from moe_hf.bench.speed.report import GOAL_COLUMNS
from moe_hf.bench.speed.tables import filled, goal_rows, markdown_table, milliseconds

ARM_COLUMNS = ("arm", "ms", "quartiles", "n", "MiB", "difference")


class MixersReport(NamedTuple):
    """Everything of one run: `machine` is `describe_machine`'s, `command` the words that repeat the run."""

    command: str
    machine: dict[str, Any]
    cases: list[Case]
    results: list[CaseResult]
    points: list[Point]
    perplexities: dict[str, float]
    interrupted: bool = False

    @property
    def verdicts(self) -> list[Verdict]:
        """Every number to reach with what was measured of it."""
        return verdicts(self.cases, self.results, self.perplexities)


def write_report(report: MixersReport, folder: Path) -> list[Path]:
    """Write report.md, report.json and the pictures into `folder`; returns their paths, report.md first."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw_lengths(report.points, folder)
    with whole_file(folder / "report.json") as aside:
        aside.write_text(json.dumps(to_json(report), indent=1) + "\n")
    with whole_file(folder / "report.md") as aside:
        aside.write_text(report_text(report, [picture.name for picture in pictures]))
    return [folder / "report.md", folder / "report.json", *pictures]


def to_json(report: MixersReport) -> dict[str, Any]:
    """What a JSON file can hold of the report."""
    return {
        "command": report.command,
        "machine": report.machine,
        "interrupted": report.interrupted,
        "cases": [
            {
                **result._asdict(),
                "arms": [
                    {**arm._asdict(), "samples": None if arm.samples is None else arm.samples._asdict()}
                    for arm in result.arms
                ],
            }
            for result in report.results
        ],
        "perplexities": report.perplexities,
        "lengths": [point._asdict() for point in report.points],
        "goals": [
            {
                "quantity": verdict.goal.quantity,
                "must": verdict.goal.must,
                "higher_is_better": verdict.goal.higher,
                "values": [value._asdict() for value in verdict.values],
                "verdict": verdict.text,
            }
            for verdict in report.verdicts
        ],
    }


def report_text(report: MixersReport, pictures: Sequence[str] = ()) -> str:
    """The report as Markdown, the table of goals first."""
    machine = [[name, str(value)] for name, value in report.machine.items() if value not in (None, {}, [])]
    parts = [
        "# moe-hf bench: mixers",
        f"Repeat it with `{report.command}`.",
        "Whole layers, one sequence, float32, one thread, CPU time of the process. Arms of one table ran in turns, in "
        "random order within each round, after warming up; medians [quartiles] of n samples; a call that takes minutes "
        "was timed once, cold. Ratios are the median of the ratios within a round. `difference` is the relative one "
        "between an arm's result (in training, the gradient of its input) and the first arm's, which was looked at "
        "before anything was timed. Memory is the most that PyTorch held at once within a call, beyond what was there. "
        "transformers' layers are its own for a CPU, with the same weights.",
    ]
    if report.interrupted:
        parts.append("**Interrupted: this is what had been measured by then.**")
    rows = goal_rows(report.verdicts)
    columns, cells = filled(GOAL_COLUMNS, rows)
    parts += ["## Numbers to reach", markdown_table(columns, cells)]
    if pictures:
        parts += ["## Time and memory by length", *[f"![{name.split('.')[0]}]({name})" for name in pictures]]
        parts.append(_lengths_table(report.points))
    if report.perplexities:
        full = report.perplexities[FULL]
        rows = [[name, f"{value:.3f}", f"{value / full - 1:+.2%}"] for name, value in report.perplexities.items()]
        parts += [
            "## Perplexity with sparse attention",
            "A model of 2 layers of width 128, trained with full attention on contexts of 256 tokens of the embedded "
            "corpus, scored on conversations that it has not seen.",
            markdown_table(["attention", "perplexity", "difference"], rows),
        ]
    parts.append("## Every case")
    for result in report.results:
        parts.append(f"**{result.label}**" + (", per token" if result.mode == DECODE else ""))
        if result.arms:
            parts.append(markdown_table(*filled(ARM_COLUMNS, arm_rows(result))))
        parts += [f"- not measured: {name}: {reason}" for name, reason in result.skipped.items()]
    return "\n\n".join([*parts, "## Machine", markdown_table(["machine", ""], machine)]) + "\n"


def arm_rows(result: CaseResult) -> list[list[str]]:
    """One row per arm, under `ARM_COLUMNS`."""
    rows = []
    for arm in result.arms:
        cells = ["", "", ""]
        if arm.samples is not None:
            summary = spread(arm.samples.seconds)
            cells = [
                milliseconds(summary.median),
                f"{milliseconds(summary.low)}-{milliseconds(summary.high)}",
                str(summary.samples),
            ]
        held = "" if arm.peak_bytes is None else f"{arm.peak_bytes / 2**20:,.0f}"
        rows.append([arm.name, *cells, held, "" if arm.error is None else f"{arm.error:.0e}"])
    return rows


def _lengths_table(points: Sequence[Point]) -> str:
    lengths = sorted({point.length for point in points})
    rows = []
    for kind, mode in dict.fromkeys((point.kind, point.mode) for point in points):
        of_length = {point.length: point for point in points if (point.kind, point.mode) == (kind, mode)}
        cells = [
            f"{milliseconds(of_length[length].seconds)} ms, {of_length[length].peak_bytes / 2**20:,.0f} MiB"
            if length in of_length
            else ""
            for length in lengths
        ]
        rows.append([f"{kind}, {mode}", *cells])
    return markdown_table(["layer", *[f"{length:,}" for length in lengths]], rows)
