"""Draws a report's pictures: time over the roof, growth in tokens and in experts, and memory."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from moe_hf.bench.harness.drawing import GRID, INK, QUIET, dress, look_of, save
from moe_hf.bench.speed.arms import GEMM, ROOF
from moe_hf.bench.speed.growth_case import GROWTH, split_by_experts
from moe_hf.bench.speed.results import ArmResult, GroupResult, Report
from moe_hf.bench.speed.utilization import Utilization
from moe_hf.bench.speed.utilization_plot import draw_utilization

_MOST_ROWS = 14


class _Dot(NamedTuple):
    """One mark of a dot plot."""

    row: str
    arm: str
    value: float


def draw_plots(report: Report, utilization: Sequence[Utilization], folder: Path) -> list[Path]:
    """Every picture that the report has the numbers for; returns their paths."""
    drawn = []
    for case in report.cases:
        modes = {mode: [one for group in of for one in split_by_experts(group)] for mode, of in report.of_case(case)}
        for name, draw in _PICTURES.items():
            figure = draw(case, modes)
            if figure is not None:
                drawn.append(save(figure, folder / f"{name}_{case}.png"))
    return drawn + draw_utilization(utilization, folder)


def _ratio_to_roof(case: str, modes: dict[str, list[GroupResult]]) -> Figure | None:
    panels = {}
    for mode, groups in modes.items():
        dots = []
        for group in groups:
            for arm in group.arms:
                found = group.to_roof(arm.name)
                if found is not None and arm.family not in (ROOF, GEMM):
                    dots.append(_Dot(_row(group), arm.name, found.of_medians))
        panels[mode] = dots
    roofs = [roof.name for groups in modes.values() for group in groups if (roof := group.first_of(ROOF))]
    return _dot_panels(panels, f"{case}: time / {roofs[0] if roofs else ''}", "time / roof", line=1.0)


def _memory(case: str, modes: dict[str, list[GroupResult]]) -> Figure | None:
    def dots_of(measure: Callable[[GroupResult, ArmResult], float | None]) -> list[_Dot]:
        found = []
        for group in modes.get("training", []):
            for arm in group.arms:
                value = measure(group, arm)
                if value is not None:
                    found.append(_Dot(_row(group), arm.name, value))
        return found

    panels = {
        "saved for backward, bytes per token": dots_of(_saved_per_token),
        "peak without returned gradients, MiB": dots_of(_temporary_mebibytes),
    }
    return _dot_panels(panels, f"{case}, training: memory", "", line=None)


def _saved_per_token(group: GroupResult, arm: ArmResult) -> float | None:
    return None if arm.saved_bytes is None else arm.saved_bytes / group.size.tokens


def _temporary_mebibytes(group: GroupResult, arm: ArmResult) -> float | None:
    # The roof returns other gradients: one expert's.
    if arm.peak_bytes is None or arm.family == ROOF or not group.gradient_bytes:
        return None
    return max(arm.peak_bytes - group.gradient_bytes, 0) / 2**20


def _dot_panels(panels: dict[str, list[_Dot]], title: str, x_label: str, line: float | None) -> Figure | None:
    panels = {name: dots for name, dots in panels.items() if dots}
    if not panels:
        return None
    rows_of = {name: list(dict.fromkeys(dot.row for dot in dots))[:_MOST_ROWS] for name, dots in panels.items()}
    most = max(len(rows) for rows in rows_of.values())
    figure = Figure(figsize=(4.0 + 4.2 * len(panels), 1.9 + 0.42 * most), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, dots) in zip(grid, panels.items(), strict=True):
        rows = rows_of[name]
        for dot in dots:
            if dot.row in rows:
                look = look_of(dot.arm)
                axes.plot(dot.value, rows.index(dot.row), look.marker, color=look.color, markersize=8, alpha=0.85)
        axes.set_yticks(range(len(rows)), rows)
        axes.set_ylim(most - 0.5, -0.5)
        dress(axes, name, x_label or name.split(", ")[-1])
        axes.grid(axis="both", color=GRID, linewidth=0.8)
        if line is not None:
            axes.axvline(line, color=INK, linewidth=1.2)
        _logarithmic_if_wide(axes, [dot.value for dot in dots])
    _legend(figure, [dot.arm for dots in panels.values() for dot in dots])
    figure.suptitle(title, color=INK, fontsize=12)
    return figure


def _logarithmic_if_wide(axes: Axes, values: Sequence[float]) -> None:
    if min(values) > 0 and max(values) / min(values) > 6:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, 1.05 * max(values))


def _growth(field: str, label: str) -> Callable[[str, dict[str, list[GroupResult]]], Figure | None]:
    def draw(case: str, modes: dict[str, list[GroupResult]]) -> Figure | None:
        series = {}
        for mode, groups in modes.items():
            series.update(_series(mode, groups, field))
        if not series:
            return None
        columns = min(len(series), 3)
        rows = math.ceil(len(series) / columns)
        figure = Figure(figsize=(max(7.0, 1.2 + 4.4 * columns), 1.0 + 3.7 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).flatten()
        for axes in grid[len(series) :]:
            axes.set_visible(False)
        for axes, (name, of_arm) in zip(grid, series.items(), strict=False):
            for arm, points in of_arm.items():
                look = look_of(arm)
                x, y = zip(*sorted(points), strict=True)
                axes.plot(x, y, marker=look.marker, color=look.color, linestyle=look.line, linewidth=1.6)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(sorted({x for points in of_arm.values() for x, _ in points}))
            axes.xaxis.set_major_formatter("{x:.0f}")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
            dress(axes, name, label)
            axes.set_ylabel("milliseconds per call", color=INK)
            axes.grid(color=GRID, linewidth=0.8)
        _legend(figure, [arm for of_arm in series.values() for arm in of_arm])
        figure.suptitle(f"{'experts' if case == GROWTH else case}: growth with the {label}", color=INK, fontsize=12)
        return figure

    return draw


def _series(mode: str, groups: Sequence[GroupResult], field: str) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """By panel and arm: points (value of the field, milliseconds) of groups that differ in that field alone."""
    families: dict[tuple, list[GroupResult]] = {}
    for group in groups:
        rest = {**group.size._asdict(), field: None}
        families.setdefault(tuple(rest.values()), []).append(group)
    panels = {}
    for alike in families.values():
        if len({getattr(group.size, field) for group in alike}) < 2:
            continue
        of_arm: dict[str, list[tuple[float, float]]] = {}
        for group in alike:
            for arm in group.arms:
                if arm.family != GEMM:
                    of_arm.setdefault(arm.name, []).append((getattr(group.size, field), 1e3 * arm.spread.median))
        size = alike[0].size
        shape = f"T{size.tokens} E{size.num_experts}".replace(f"{_LETTER[field]}{getattr(size, field)}", "").strip()
        text = f"{mode}, {shape}, {size.hidden_size}x{size.expert_width} k{size.k}\n{size.setting}"
        panels[text] = {name: points for name, points in of_arm.items() if len(points) > 1}
    # The first few stand for the rest, which report.json holds.
    return {name: panels[name] for name in list(panels)[:3]}


def _row(group: GroupResult) -> str:
    return f"{group.size.label}\n{group.size.setting}"


def _legend(figure: Figure, arms: Sequence[str]) -> None:
    names = list(dict.fromkeys(arms))
    marks = [
        Line2D([], [], marker=look_of(name).marker, color=look_of(name).color, linestyle="", label=name)
        for name in names
    ]
    # About 1.8 inches per name.
    columns = max(1, min(len(names), int(figure.get_figwidth() / 1.8)))
    figure.legend(handles=marks, loc="outside lower center", ncols=columns, frameon=False, labelcolor=QUIET)


_LETTER = {"tokens": "T", "num_experts": "E"}
_PICTURES: dict[str, Callable[[str, dict[str, list[GroupResult]]], Figure | None]] = {
    "ratio_to_roof": _ratio_to_roof,
    "growth_tokens": _growth("tokens", "number of tokens"),
    "growth_experts": _growth("num_experts", "number of experts"),
    "memory": _memory,
}
