"""Writes a run's report: report.md to read, report.json with every sample, and the pictures."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from moe_hf.base.files import whole_file
from moe_hf.bench.speed.comparison import MOST_ERROR, MOST_GRADIENT_ERROR
from moe_hf.bench.speed.goals import Goal, judge
from moe_hf.bench.speed.plots import draw_plots
from moe_hf.bench.speed.results import GroupResult, Report, from_json, to_json
from moe_hf.bench.speed.tables import (
    ARM_COLUMNS,
    arm_rows,
    family_note,
    filled,
    goal_rows,
    markdown_table,
    ratio_table,
    summary_table,
)
from moe_hf.bench.speed.utilization import Utilization

GOAL_COLUMNS = ("quantity", "must", "goal", "measured, worst to best", "verdict")

_CLOCKS = {
    "wall": "Wall clock",
    "cpu": "CPU time (of the process with one thread; of the main thread, waiting passively, with more)",
}


def write_report(
    report: Report, folder: Path, goals: Sequence[Goal] = (), utilization: Sequence[Utilization] = ()
) -> list[Path]:
    """Write report.md, report.json and the pictures into `folder`; returns their paths, report.md first."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw_plots(report, utilization, folder)
    data = write_json(report, folder, goals, utilization)
    with whole_file(folder / "report.md") as aside:
        aside.write_text(report_text(report, goals, [picture.name for picture in pictures]))
    return [folder / "report.md", data, *pictures]


def write_json(
    report: Report, folder: Path, goals: Sequence[Goal] = (), utilization: Sequence[Utilization] = ()
) -> Path:
    """Write report.json alone, which is cheap enough to be done after every group; returns its path."""
    data = {
        **to_json(report),
        "utilization": [one._asdict() for one in utilization],
        "goals": [
            {
                "quantity": verdict.goal.quantity,
                "must": verdict.goal.must,
                "goal": verdict.goal.goal,
                "higher_is_better": verdict.goal.higher,
                "values": [value._asdict() for value in verdict.values],
                "verdict": verdict.text,
            }
            for verdict in judge(goals, report.groups)
        ],
    }
    with whole_file(folder / "report.json") as aside:
        aside.write_text(json.dumps(data, indent=1) + "\n")
    return folder / "report.json"


def read_report(folder: Path) -> Report:
    """The report whose report.json is in `folder`."""
    return from_json(json.loads((folder / "report.json").read_text()))


def report_text(report: Report, goals: Sequence[Goal] = (), pictures: Sequence[str] = ()) -> str:
    """The report as Markdown; the table of goals, if there are any, comes last."""
    parts = [f"# {report.title}", _head(report), _machine(report)]
    for case in report.cases:
        parts.append(f"## {case}")
        for mode, groups in report.of_case(case):
            parts += _mode(mode, groups)
    if pictures:
        parts += ["## Pictures", *[f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in pictures]]
    if goals:
        parts += [
            "## Numbers to reach",
            "Ratios of medians within one run; >= rows: times faster, <= rows: time (or bytes) over time (or bytes). "
            "The worst of all measured sizes decides; `paired` is the median of the ratios within a round.",
            markdown_table(GOAL_COLUMNS, goal_rows(judge(goals, report.groups))),
        ]
    return "\n\n".join(parts) + "\n"


def _head(report: Report) -> str:
    clocks = list(dict.fromkeys(group.clock for group in report.groups))
    lines = [
        f"Repeat it with `{report.command}`; seed {report.seed}.",
        "Arms of one table ran in turns, in random order within each round, after warming up; medians [quartiles] of n "
        "samples. Opponents more than 4 times slower than the fastest were sampled twice only. "
        + " / ".join(f"Clock: {_CLOCKS[clock]}." for clock in clocks if clock in _CLOCKS),
        "Before anything was timed, every backend's result was compared with that of a loop over the experts in "
        "float32 which no backend has a part in, and in training also every gradient: of the tokens, the parameters "
        "and, where routing is given, the routing weights. A result's relative error had to be at most "
        f"{_allowed(MOST_ERROR)}, that of each gradient {_allowed(MOST_GRADIENT_ERROR)}; a gradient that all but "
        "vanishes beside the others is held against a hundredth of their root mean square. An arm beyond that is not "
        "in the tables and is marked WRONG. Blocks and whole models were compared in float32; of a model the logits "
        "(for generation those of the prompt) and, in training, the gradients of all parameters. Routers, roofs and "
        "plain GEMMs compute other things and were not compared.",
        "The roof is the dense computation of as many FLOPs: T*k rows through one expert-sized MLP; for a layer a "
        "dense FFN k times as wide; for routers the bare projection; for a whole model the dense model whose FFNs have "
        "one expert's width. `plain GEMM` is the up projection of T*k rows by one expert, alone. Peak memory counts "
        "every allocation of PyTorch within one call, returned gradients among them, but not what a GEMM library "
        "allocates for itself.",
    ]
    if report.interrupted:
        lines.insert(0, "**Interrupted: this is what had been measured by then.**")
    return "\n\n".join(lines)


def _allowed(errors: Mapping[torch.dtype, float]) -> str:
    return ", ".join(f"{most:g} in {str(dtype).removeprefix('torch.')}" for dtype, most in errors.items())


def _machine(report: Report) -> str:
    names = [*report.machine]
    rows = [[name, _plain(report.machine[name])] for name in names if report.machine[name] not in (None, {}, [])]
    return markdown_table(["machine", ""], rows) if rows else ""


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={shlex.quote(str(item))}" for key, item in value.items())
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _mode(mode: str, groups: Sequence[GroupResult]) -> list[str]:
    parts = [f"### {groups[0].case}, {mode}", "Median milliseconds per call; the fastest backend in bold."]
    parts.append(markdown_table(*summary_table(groups)))
    ratios = ratio_table(groups)
    if ratios[1]:
        parts += ["Ratios of medians (median ratio within a round):", markdown_table(*filled(*ratios))]
    parts.append(family_note([arm for group in groups for arm in group.arms]) + ".")
    details = ["<details><summary>Every arm</summary>"]
    for group in groups:
        details += [
            f"**{group.size.label}, {group.size.setting}**: {group.size.rows_per_expert:g} rows per expert",
            *([markdown_table(*filled(ARM_COLUMNS, arm_rows(group)))] if group.arms else []),
        ]
        details += [f"- not measured: {skipped.name}: {skipped.reason}" for skipped in group.skipped]
    return [*parts, *details, "</details>"]
