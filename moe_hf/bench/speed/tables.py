"""Turns results into rows of text, for Markdown and for the terminal alike."""

from collections.abc import Sequence

from moe_hf.bench.harness.spread import Ratio
from moe_hf.bench.speed.arms import FUSED, GEMM, OWN, PACKAGE, ROOF, TRANSFORMERS
from moe_hf.bench.speed.goals import Verdict
from moe_hf.bench.speed.growth_case import GROWTH
from moe_hf.bench.speed.results import ArmResult, GroupResult

ARM_COLUMNS = tuple(
    "arm|ms|quartiles|n|x best|x grouped|/ roof|GFLOP/s|of GEMM|saved B/tok|peak MiB".split("|"),
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


def arm_rows(group: GroupResult) -> list[list[str]]:
    """One row per arm, under `ARM_COLUMNS`."""
    best, default = group.best(TRANSFORMERS), group.arm("grouped_mm")
    rows = []
    for arm in group.arms:
        # In a growth group the best is simply the one with fewer experts.
        compared = arm.family in (OWN, PACKAGE, FUSED) and group.case != GROWTH
        saved = None if arm.saved_bytes is None else f"{arm.saved_bytes / group.size.tokens:,.0f}"
        share = group.gemm_share(arm.name)
        rows.append(
            [
                arm.name,
                milliseconds(arm.spread.median),
                f"{milliseconds(arm.spread.low)}-{milliseconds(arm.spread.high)}",
                str(arm.spread.samples),
                ratio_text(group.speedup(arm.name, best)) if compared else "",
                ratio_text(group.speedup(arm.name, default)) if compared else "",
                ratio_text(group.to_roof(arm.name)) if arm.family not in (GEMM, ROOF) else "",
                "" if arm.gflops is None else f"{arm.gflops:,.1f}",
                "" if share is None or arm.family == GEMM else f"{share:.0%}",
                saved or "",
                "" if arm.peak_bytes is None else f"{arm.peak_bytes / 2**20:,.1f}",
            ]
        )
    return rows


def filled(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The same table without the columns that are empty in every row."""
    kept = [index for index in range(len(columns)) if any(row[index] for row in rows)]
    return [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]


def summary_table(groups: Sequence[GroupResult]) -> tuple[list[str], list[list[str]]]:
    """One row per size, one column per arm: median milliseconds, the fastest backend of each row in bold."""
    names = list(dict.fromkeys(arm.name for group in groups for arm in group.arms if arm.family != GEMM))
    rows = []
    for group in groups:
        medians = {arm.name: arm.spread.median for arm in group.arms if arm.family not in (ROOF, GEMM)}
        fastest = min(medians, key=medians.__getitem__, default=None)
        cells = []
        for name in names:
            arm = group.arm(name)
            text = "" if arm is None else milliseconds(arm.spread.median)
            cells.append(f"**{text}**" if name == fastest else text)
        rows.append([group.size.label, group.size.setting, *cells])
    return ["tokens x width x expert", "setting", *names], rows


def ratio_table(groups: Sequence[GroupResult]) -> tuple[list[str], list[list[str]]]:
    """One row per size and own arm: times faster than transformers' best and default, time over the roof.

    Each as the ratio of medians, with the median of the ratios within a round in brackets.
    """
    rows = []
    for group in groups:
        best, default = group.best(TRANSFORMERS), group.arm("grouped_mm")
        for arm in group.arms:
            if arm.family in (OWN, PACKAGE) and group.case != GROWTH:
                cells = [group.speedup(arm.name, best), group.speedup(arm.name, default), group.to_roof(arm.name)]
                if any(cells):
                    name = "" if best is None else best.name
                    both = [both_ratios(cell) for cell in cells]
                    rows.append([group.size.label, group.size.setting, arm.name, both[0], name, *both[1:]])
    return ["tokens x width x expert", "setting", "arm", "x best", "best is", "x grouped_mm", "time / roof"], rows


def goal_rows(verdicts: Sequence[Verdict], with_place: bool = True) -> list[list[str]]:
    """One row per goal: what, must, goal, measured from worst to best (and where the worst was), verdict."""
    rows = []
    for goal, values in verdicts:
        verdict = Verdict(goal, values)
        sign = ">=" if goal.higher else "<="
        hoped = "" if goal.goal is None else f"{sign} {goal.goal:g}"
        rows.append([goal.quantity, f"{sign} {goal.must:g}", hoped, _range(verdict, with_place), verdict.text])
    return rows


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


def family_note(arms: Sequence[ArmResult]) -> str:
    """Which arm belongs to whom."""
    names: dict[str, list[str]] = {}
    for arm in arms:
        names.setdefault(arm.family, [])
        if arm.name not in names[arm.family]:
            names[arm.family].append(arm.name)
    return "; ".join(f"{family}: {', '.join(of)}" for family, of in names.items())


def _range(verdict: Verdict, with_place: bool) -> str:
    worst, best = verdict.worst, verdict.best
    if worst is None or best is None:
        return ""
    text = _number(worst.number) if len(verdict.values) == 1 else f"{_number(worst.number)} to {_number(best.number)}"
    if not with_place:
        return text
    paired = "" if worst.paired is None else f", paired {_number(worst.paired)}"
    return f"{text} (worst: {worst.where}{paired})"


def _number(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"
