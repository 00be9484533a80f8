"""Turns numbers into rows of text, for Markdown and for the terminal alike."""

import re
from collections.abc import Sequence
from pathlib import Path

from moe_hf.base.files import atomic_file
from moe_hf.bench.harness.arms import FUSED, GEMM, OWN, PACKAGE, ROOF, TRANSFORMERS
from moe_hf.bench.harness.goals import Verdict
from moe_hf.bench.harness.results import ArmResult, GroupResult
from moe_hf.bench.harness.spread import Ratio

GOAL_COLUMNS = ("quantity", "must", "goal", "measured, worst to best", "verdict")
ARM_COLUMNS = tuple(
    "arm|ms|quartiles|n|x best|x grouped|/ roof|GFLOP/s|of GEMM|saved B/tok|peak MiB|difference".split("|"),
)
"""`x best`, `x grouped`: how many times faster than transformers' best backend and its default. `/ roof`: time over the
dense computation's. `of GEMM`: achieved over a plain GEMM's FLOP/s. `saved B/tok`: bytes kept for backward, by token.
"""


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; the first column is text, the others are numbers.

    >>> print(markdown_table(["arm", "ms"], [["eager", "1.2"]]))
    | arm | ms |
    |---|---:|
    | eager | 1.2 |
    """
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows])


def filled(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The same table without the columns that are empty in every row."""
    kept = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]


def arm_table(group: GroupResult) -> tuple[list[str], list[list[str]]]:
    """One row per arm, under those of `ARM_COLUMNS` that say something."""
    return filled(ARM_COLUMNS, [_arm_row(group, arm) for arm in group.arms])


def _arm_row(group: GroupResult, arm: ArmResult) -> list[str]:
    # In a group without a roof or a GEMM the best is no opponent: it may be the same backend with fewer experts.
    compared = arm.family in (OWN, PACKAGE, FUSED) and group.first_of(ROOF) is not None
    best, default = group.best(TRANSFORMERS), group.arm("grouped_mm")
    share = group.gemm_share(arm.name)
    timed = bool(arm.samples.seconds)
    return [
        arm.name,
        milliseconds(arm.spread.median) if timed else "",
        f"{milliseconds(arm.spread.low)}-{milliseconds(arm.spread.high)}" if timed else "",
        str(arm.spread.samples) if timed else "",
        ratio_text(group.speedup(arm.name, best)) if compared else "",
        ratio_text(group.speedup(arm.name, default)) if compared else "",
        ratio_text(group.to_roof(arm.name)) if arm.family not in (GEMM, ROOF) else "",
        "" if arm.gflops is None else f"{arm.gflops:,.1f}",
        "" if share is None or arm.family == GEMM else f"{share:.0%}",
        "" if arm.saved_bytes is None else f"{arm.saved_bytes / group.size.tokens:,.0f}",
        "" if arm.peak_bytes is None else f"{arm.peak_bytes / 2**20:,.1f}",
        "" if arm.error is None else f"{arm.error:.0e}",
    ]


def goal_table(verdicts: Sequence[Verdict], with_place: bool = True) -> tuple[list[str], list[list[str]]]:
    """One row per goal: what, must, goal, measured from worst to best (and where the worst was), verdict."""
    rows = []
    for verdict in verdicts:
        goal = verdict.goal
        sign = ">=" if goal.higher else "<="
        hoped = "" if goal.goal is None else f"{sign} {goal.goal:g}"
        rows.append([goal.quantity, f"{sign} {goal.must:g}", hoped, _range(verdict, with_place), verdict.text])
    return filled(GOAL_COLUMNS, rows)


def _range(verdict: Verdict, with_place: bool) -> str:
    worst, best = verdict.worst, verdict.best
    if worst is None or best is None:
        return ""
    text = _number(worst.number) if len(verdict.values) == 1 else f"{_number(worst.number)} to {_number(best.number)}"
    if not with_place:
        return text
    paired = "" if worst.paired is None else f", paired {_number(worst.paired)}"
    return f"{text} (worst: {worst.where}{paired})"


def milliseconds(seconds: float) -> str:
    """Three significant digits at least.

    >>> milliseconds(0.0123456), milliseconds(1.5), milliseconds(0.00000123)
    ('12.3', '1,500', '0.00123')
    """
    number = 1e3 * seconds
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number < 1 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def ratio_text(found: Ratio | None) -> str:
    """The ratio of medians.

    >>> ratio_text(Ratio(1.234, 1.2)), ratio_text(None)
    ('1.23', '')
    """
    return "" if found is None else _number(found.of_medians)


def both_ratios(found: Ratio | None) -> str:
    """The ratio of medians, and in brackets the median ratio within a round.

    >>> both_ratios(Ratio(1.234, 1.2))
    '1.23 (1.20)'
    """
    return "" if found is None else f"{_number(found.of_medians)} ({_number(found.paired)})"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def fill_page(page: Path, name: str, text: str) -> bool:
    """Put `text` between the page's marks `<!-- measured: NAME -->` and `<!-- end of NAME -->`.

    Returns:
        Whether the page exists and has the marks; otherwise nothing is written.
    """
    if not page.is_file():
        return False
    begin, end = f"<!-- measured: {name} -->", f"<!-- end of {name} -->"
    old = page.read_text(encoding="utf-8")
    # Replaced by a function: in a text, re would read a backslash of the table as a group.
    marked = f"{re.escape(begin)}.*?{re.escape(end)}"
    new, count = re.subn(marked, lambda _: f"{begin}\n\n{text}\n\n{end}", old, flags=re.DOTALL)
    if count:
        with atomic_file(page) as aside:
            aside.write_text(new, encoding="utf-8")
    return count > 0
