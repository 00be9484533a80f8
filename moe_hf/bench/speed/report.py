"""What the report of experts says around its numbers: a head, tables for each case and mode, pictures, goals."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from moe_hf.bench.harness.arms import GEMM, OWN, PACKAGE, ROOF, TRANSFORMERS
from moe_hf.bench.harness.comparison import MOST_ERROR, MOST_GRADIENT_ERROR
from moe_hf.bench.harness.goals import Verdict
from moe_hf.bench.harness.report import INTERRUPTED, Page, goals_section, machine_table, pictures_section
from moe_hf.bench.harness.results import ArmResult, GroupResult, Report
from moe_hf.bench.harness.tables import arm_table, both_ratios, filled, markdown_table, milliseconds
from moe_hf.bench.speed.plots import draw_plots
from moe_hf.bench.speed.utilization import Utilization

UTILIZATION = "utilization"
"""Under this name the report holds, further, how routers use experts."""

_CLOCKS = {
    "wall": "Wall clock",
    "cpu": "CPU time (of the process with one thread; of the main thread, waiting passively, with more)",
}


def _text(report: Report, verdicts: Sequence[Verdict], pictures: Sequence[str]) -> Iterator[str]:
    yield from _head(report)
    yield machine_table(report)
    for case in report.cases:
        yield f"## {case}"
        for mode, groups in report.of_case(case):
            yield from _mode(mode, groups)
    yield from pictures_section("Pictures", pictures)
    yield from goals_section(
        verdicts,
        "Ratios of medians within one run; >= rows: times faster, <= rows: time (or bytes) over time (or bytes). "
        "The worst of all measured sizes decides; `paired` is the median of the ratios within a round.",
    )


def _head(report: Report) -> Iterator[str]:
    if report.interrupted:
        yield INTERRUPTED
    clocks = list(dict.fromkeys(group.clock for group in report.groups))
    yield f"Repeat it with `{report.command}`; seed {report.seed}."
    yield (
        "Arms of one table ran in turns, in random order within each round, after warming up; medians [quartiles] of n "
        "samples. Opponents more than 4 times slower than the fastest were sampled twice only. "
        + " / ".join(f"Clock: {_CLOCKS[clock]}." for clock in clocks if clock in _CLOCKS)
    )
    yield (
        "Before anything was timed, every backend's result was compared with that of a loop over the experts in "
        "float32 which no backend has a part in, and in training also every gradient: of the tokens, the parameters "
        "and, where routing is given, the routing weights. A result's relative error had to be at most "
        f"{_allowed(MOST_ERROR)}, that of each gradient {_allowed(MOST_GRADIENT_ERROR)}; a gradient that all but "
        "vanishes beside the others is held against a hundredth of their root mean square. An arm beyond that is not "
        "in the tables and is marked WRONG. Blocks and whole models were compared in float32; of a model the logits "
        "(for generation those of the prompt) and, in training, the gradients of all parameters. Routers, roofs and "
        "plain GEMMs compute other things and were not compared."
    )
    yield (
        "The roof is the dense computation of as many FLOPs: T*k rows through one expert-sized MLP; for a layer a "
        "dense FFN k times as wide; for routers the bare projection; for a whole model the dense model whose FFNs have "
        "one expert's width. `plain GEMM` is the up projection of T*k rows by one expert, alone. Peak memory counts "
        "every allocation of PyTorch within one call, returned gradients among them, but not what a GEMM library "
        "allocates for itself."
    )


def _allowed(errors: Mapping[torch.dtype, float]) -> str:
    return ", ".join(f"{most:g} in {str(dtype).removeprefix('torch.')}" for dtype, most in errors.items())


def _mode(mode: str, groups: Sequence[GroupResult]) -> Iterator[str]:
    yield f"### {groups[0].case}, {mode}"
    yield "Median milliseconds per call; the fastest backend in bold."
    yield markdown_table(*_summary_table(groups))
    columns, rows = _ratio_table(groups)
    if rows:
        yield "Ratios of medians (median ratio within a round):"
        yield markdown_table(*filled(columns, rows))
    yield _family_note([arm for group in groups for arm in group.arms]) + "."
    yield "<details><summary>Every arm</summary>"
    for group in groups:
        yield f"**{group.place}**: {group.size.rows_per_expert:g} rows per expert"
        if group.arms:
            yield markdown_table(*arm_table(group))
        yield from (f"- not measured: {skipped.name}: {skipped.reason}" for skipped in group.skipped)
    yield "</details>"


def _summary_table(groups: Sequence[GroupResult]) -> tuple[list[str], list[list[str]]]:
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


def _ratio_table(groups: Sequence[GroupResult]) -> tuple[list[str], list[list[str]]]:
    """One row per size and own arm: times faster than transformers' best and default, time over the roof.

    Each as the ratio of medians, with the median of the ratios within a round in brackets. A growth group has no
    roof, and its best is simply the one with fewer experts.
    """
    rows = []
    for group in groups:
        best, default = group.best(TRANSFORMERS), group.arm("grouped_mm")
        for arm in group.arms:
            if arm.family in (OWN, PACKAGE) and group.first_of(ROOF) is not None:
                cells = [group.speedup(arm.name, best), group.speedup(arm.name, default), group.to_roof(arm.name)]
                both = [both_ratios(cell) for cell in cells]
                name = "" if best is None else best.name
                rows.append([group.size.label, group.size.setting, arm.name, both[0], name, *both[1:]])
    return ["tokens x width x expert", "setting", "arm", "x best", "best is", "x grouped_mm", "time / roof"], rows


def _family_note(arms: Sequence[ArmResult]) -> str:
    """Which arm belongs to whom."""
    names: dict[str, list[str]] = {}
    for arm in arms:
        names.setdefault(arm.family, [])
        if arm.name not in names[arm.family]:
            names[arm.family].append(arm.name)
    return "; ".join(f"{family}: {', '.join(of)}" for family, of in names.items())


def _draw(report: Report, folder: Path) -> list[Path]:
    used: Sequence[Utilization] = report.further.get(UTILIZATION, ())
    return draw_plots(report, used, folder)


SPEED_PAGE = Page(_text, _draw, hidden=("n", "GFLOP/s", "difference"))
