"""Reports on the sweep: a Markdown table with a line per mixer, its gates, and a picture."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe_hf.bench.studies.load_balance_report import fill_page
from moe_hf.bench.studies.recall.arms import ARMS
from moe_hf.bench.studies.recall.learning import Recipe
from moe_hf.bench.studies.recall.sweep import SWEPT, Key, best_rate
from moe_hf.bench.studies.recall.tasks import TASKS

PAGE, MARK = "mixers.md", "recall"

# Okabe and Ito's palette, told apart by colour-blind readers; the line says the same once more.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_LINES = ("-", "--", ":")
_QUIET, _GRID = "#8a8a8a", "#dddddd"


class Row(NamedTuple):
    """What was found of one mixer on one task: the runs at the best learning rate, one per seed."""

    arm: str
    task: str
    learning_rate: float
    runs: list[dict[str, Any]]

    def accuracies(self, variant: str) -> list[float]:
        """Share of right answers on that variant, one per seed."""
        return [run["accuracy"][variant] for run in self.runs]


def summarise(runs: Mapping[Key, dict[str, Any]], recipe: Recipe) -> list[Row]:
    """A row for each mixer and task that has been run at the mixer's best rate, in the order of `ARMS` and `TASKS`."""
    return list(_rows(runs, recipe))


def _rows(runs: Mapping[Key, dict[str, Any]], recipe: Recipe) -> Iterator[Row]:
    for arm in ARMS:
        mine = {key: run for key, run in runs.items() if key.arm == arm}
        tried = [run for key, run in mine.items() if key.max_steps == recipe.sweep_steps]
        if not tried:
            continue
        rate = best_rate(tried, recipe.solved)
        for task in TASKS:
            wanted = (task, rate, recipe.steps)
            found = [run for key, run in mine.items() if (key.task, key.learning_rate, key.max_steps) == wanted]
            if found:
                yield Row(arm, task, rate, found)


def table(rows: Sequence[Row]) -> str:
    """The rows of the swept task as a Markdown table, the other tasks in columns of their own."""
    task = TASKS[SWEPT]
    others = [name for name in TASKS if name != SWEPT]
    heads = [f"**{name} (trained)**" if name == task.trained else name for name in task.variants]
    header = ["mixer", "parameters", "rate", *heads, "gate", "steps", "CPU s", *others]
    lines = [_line(header), _line(["---"] * len(header))]
    by_place = {(row.task, row.arm): row for row in rows}
    for row in rows:
        if row.task != SWEPT:
            continue
        cells = [row.arm, f"{row.runs[0]['num_parameters']:,}", f"{row.learning_rate:g}"]
        cells += [_spread(row.accuracies(name)) for name in task.variants]
        cells += [_gate(row), _range([run["steps"] for run in row.runs])]
        cells.append(f"{fmean(run['cpu_seconds'] for run in row.runs):.0f}")
        for name in others:
            other = by_place.get((name, row.arm))
            cells.append(
                _spread(other.accuracies(TASKS[name].trained)) + " missed" * _is_missed(other) if other else ""
            )
        lines.append(_line(cells))
    return "\n".join(lines)


def missed_gates(rows: Sequence[Row]) -> list[str]:
    """A sentence for each mixer and task that is below its gate."""
    return [
        f"{row.arm} reaches {_reached(row):.3f} on {row.task}, below its gate of {ARMS[row.arm].gates[row.task]}"
        for row in rows
        if _is_missed(row)
    ]


def write_report(rows: Sequence[Row], folder: Path) -> None:
    """Write `data/recall.md` and `images/recall.png`, and fill the place between the marks of `mixers.md`."""
    text = table(rows)
    for name in ("data", "images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "data" / "recall.md").write_text(text + "\n", encoding="utf-8")
    fill_page(folder / PAGE, MARK, text)
    if any(row.task == SWEPT for row in rows):
        _picture(rows).savefig(folder / "images" / "recall.png", dpi=110)


def _picture(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    chosen = [row for row in rows if row.task == SWEPT]
    task = TASKS[SWEPT]
    pairs = [int(name.split()[0]) for name in task.variants]
    for index, row in enumerate(chosen):
        color, line = _COLORS[index % len(_COLORS)], _LINES[index // len(_COLORS)]
        means = [fmean(row.accuracies(name)) for name in task.variants]
        left.plot(pairs, means, color=color, linestyle=line, marker="o", markersize=4, label=row.arm)
        # The run in the middle: neither the luckiest seed nor the unluckiest.
        run = sorted(row.runs, key=lambda run: run["cpu_seconds"])[len(row.runs) // 2]
        _, seconds, accuracy = zip(*run["curve"], strict=True)
        right.plot(seconds, accuracy, color=color, linestyle=line, label=row.arm)
    left.set_xticks(pairs, [f"{name.split()[0]}\n{'(trained)' * (name == task.trained)}" for name in task.variants])
    left.set_xlabel("pairs to remember")
    left.set_title("Recall, mean over the seeds", loc="left", fontsize=11)
    right.set_xscale("log")
    right.set_xlabel("CPU seconds of training")
    right.set_title("The seed in the middle, while it learns", loc="left", fontsize=11)
    for axes in (left, right):
        _dress(axes, task.chance)
    right.legend(frameon=False, fontsize=8)
    return figure


def _dress(axes: Axes, chance: float) -> None:
    axes.axhline(chance, color=_QUIET, linewidth=0.8)
    axes.text(axes.get_xlim()[0], chance, " chance", color=_QUIET, fontsize=8, va="bottom")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share of right answers")
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _reached(row: Row) -> float:
    return fmean(row.accuracies(TASKS[row.task].trained))


def _is_missed(row: Row) -> bool:
    return _reached(row) < ARMS[row.arm].gates.get(row.task, 0.0)


def _gate(row: Row) -> str:
    gate = ARMS[row.arm].gates.get(row.task)
    return "" if gate is None else f"{gate:g}" + " missed" * _is_missed(row)


def _spread(values: Sequence[float]) -> str:
    """The mean, and the range where it is not a point."""
    shown = f"{fmean(values):.2f}"
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return shown if low == high else f"{shown} ({low} to {high})"


def _range(values: Sequence[int]) -> str:
    return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,} to {max(values):,}"
