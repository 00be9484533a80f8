"""Reports on the sweep: a Markdown table with a line per mixer, its gates, and a picture."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from moe_hf.base.files import atomic_file
from moe_hf.bench.harness.drawing import QUIET, look_number, picture
from moe_hf.bench.harness.tables import fill_page, markdown_table
from moe_hf.bench.studies.recall.arms import ARMS
from moe_hf.bench.studies.recall.learning import Recipe
from moe_hf.bench.studies.recall.results import SWEPT, Key, best_rate
from moe_hf.bench.studies.recall.tasks import TASKS

PAGE, MARK = "mixers.md", "recall"


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
    columns = ["mixer", "parameters", "rate", *heads, "gate", "steps", "CPU s", *others]
    by_place = {(row.task, row.arm): row for row in rows}
    lines = []
    for row in rows:
        if row.task != SWEPT:
            continue
        cells = [row.arm, f"{row.runs[0]['num_parameters']:,}", f"{row.learning_rate:g}"]
        cells += [_spread(row.accuracies(name)) for name in task.variants]
        cells += [_gate(row), _range([run["steps"] for run in row.runs])]
        cells.append(f"{fmean(run['cpu_seconds'] for run in row.runs):.0f}")
        for other in [by_place.get((name, row.arm)) for name in others]:
            trained = [] if other is None else other.accuracies(TASKS[other.task].trained)
            cells.append(_spread(trained) + " missed" * _is_missed(other) if other else "")
        lines.append(cells)
    return markdown_table(columns, lines)


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
    (folder / "data").mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / "data" / "recall.md") as aside:
        aside.write_text(text + "\n", encoding="utf-8")
    fill_page(folder / PAGE, MARK, text)
    chosen = [row for row in rows if row.task == SWEPT]
    if chosen:
        _draw(chosen, folder / "images" / "recall.png")


def _draw(rows: Sequence[Row], file: Path) -> None:
    task = TASKS[SWEPT]
    pairs = [int(name.split()[0]) for name in task.variants]
    with picture(file, 1, 2, sharey=True) as (_, panels):
        left, right = panels[0]
        for index, row in enumerate(rows):
            look = look_number(index)
            means = [fmean(row.accuracies(name)) for name in task.variants]
            left.plot(pairs, means, color=look.color, linestyle=look.line, marker="o", markersize=4)
            # The run in the middle: neither the luckiest seed nor the unluckiest.
            run = sorted(row.runs, key=lambda run: run["cpu_seconds"])[len(row.runs) // 2]
            _, seconds, accuracy = zip(*run["curve"], strict=True)
            right.plot(seconds, accuracy, color=look.color, linestyle=look.line, label=row.arm)
        left.set_xticks(pairs, [f"{name.split()[0]}\n{'(trained)' * (name == task.trained)}" for name in task.variants])
        left.set(title="Recall, mean over the seeds", xlabel="pairs to remember", ylabel="share of right answers")
        right.set(title="The seed in the middle, while it learns", xlabel="CPU seconds of training", xscale="log")
        for axes in (left, right):
            axes.axhline(task.chance, color=QUIET, linewidth=0.8)
            axes.text(axes.get_xlim()[0], task.chance, " chance", color=QUIET, fontsize=8, va="bottom")
            axes.set_ylim(0, 1.02)
        right.legend(fontsize=8, loc="center right")


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
