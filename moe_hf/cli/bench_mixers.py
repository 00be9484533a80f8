"""`moe-hf bench --suite mixers`: measures one layer of every mixer, prints the tables and writes the report."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from moe_hf.bench.harness.machine import describe_machine
from moe_hf.bench.mixers.cases import DECODE, Case, CaseResult
from moe_hf.bench.mixers.lengths import measure_lengths
from moe_hf.bench.mixers.measure import measure
from moe_hf.bench.mixers.perplexity import perplexities
from moe_hf.bench.mixers.report import ARM_COLUMNS, MixersReport, arm_rows, write_report
from moe_hf.bench.mixers.suite import suite_cases, suite_effort, suite_schooling
from moe_hf.bench.speed.report import GOAL_COLUMNS
from moe_hf.bench.speed.tables import filled, goal_rows

MIXERS_SUITE = "mixers"
INTERRUPTED, WRONG = 130, 1


def run_mixers(words: Sequence[str], quick: bool, seed: int, folder: Path | None, console: Console) -> int:
    """Measure everything, print the tables, write the report into `folder`; returns the exit code."""
    cases = suite_cases(quick)
    report = MixersReport(shlex.join(["moe-hf", "bench", *words]), describe_machine(), cases, [], [], {})

    def announce(what: str) -> None:
        if console.is_terminal:
            console.print(f"... {what}", style="dim", markup=False)

    def on_case(case: Case) -> None:
        announce(case.label)

    try:
        for result in measure(cases, suite_effort(quick), seed, on_case):
            report.results.append(result)
            _show(console, result)
        announce("perplexity of a small trained model")
        report.perplexities.update(perplexities(suite_schooling(quick), seed))
        if folder is not None:
            report.points.extend(measure_lengths(quick, announce))
    except KeyboardInterrupt:
        report = report._replace(interrupted=True)
    _show_goals(console, report)
    if folder is not None:
        written = write_report(report, folder)
        console.print("wrote " + ", ".join(str(path) for path in written), markup=False, soft_wrap=True)
    if report.interrupted:
        console.print("interrupted: the tables hold what was measured by then", style="yellow")
        return INTERRUPTED
    wrong = [result.label for result in report.results if any("WRONG" in why for why in result.skipped.values())]
    return WRONG if wrong else 0


def _show(console: Console, result: CaseResult) -> None:
    per_token = ", per token" if result.mode == DECODE else ""
    console.print(result.label + per_token, style="bold", markup=False, soft_wrap=True)
    columns, rows = filled(ARM_COLUMNS, arm_rows(result))
    if rows:
        console.print(_table(columns, rows))
    for name, reason in result.skipped.items():
        console.print(f"  not measured: {name}: {reason}\n", style="dim", markup=False)


def _show_goals(console: Console, report: MixersReport) -> None:
    console.print("Numbers to reach", style="bold")
    columns, rows = filled(GOAL_COLUMNS, goal_rows(report.verdicts, with_place=False))
    styles = ["" if not verdict.values else ("green" if verdict.met else "red") for verdict in report.verdicts]
    console.print(_table(columns, rows, styles))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    for row, style in zip(rows, styles or [""] * len(rows), strict=True):
        table.add_row(*row, style=style)
    return table
