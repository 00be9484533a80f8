"""Shows a training run to a person: tables and a bar on a terminal, plain lines elsewhere."""

import shlex
import time
from collections.abc import Iterable

from rich.columns import Columns
from rich.console import Console, Group
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as ProgressBar
from rich.table import Table
from rich.text import Text

from moe_hf.cli.screen import in_bytes
from moe_hf.models.cards.card import placeholder
from moe_hf.text.scoreboard import Scoreboard, SkillScore, wording_lines
from moe_hf.training.runs.listeners import Progress, RunListener, RunPlan, TrainingReport

SECONDS_BETWEEN_LINES = 10.0
_FIRST_STEPS = 4


def listener_for(console: Console) -> RunListener:
    """The listener that suits where the output goes: a bar needs a terminal that can move its cursor."""
    return BarListener(console) if console.is_terminal and not console.is_dumb_terminal else LineListener(console)


class LineListener(RunListener):
    """Prints lines that can be read in a log file."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._last_line = 0.0
        self._heard = 0
        self._had_loss = False

    def noticed(self, text: str) -> None:
        """Print it."""
        self.say(f"note: {text}")

    def planned(self, plan: RunPlan) -> None:
        """Print the table of the plan."""
        self.say(plan.title)
        rows = plan_rows(plan)
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            self.say(f"  {name:<{width}}  {value}")

    def progressed(self, progress: Progress) -> None:
        """Print a line now and then: after the first steps, at the first loss, every few seconds, at the end."""
        now = time.monotonic()
        self._heard += 1
        first_loss = progress.loss is not None and not self._had_loss
        self._had_loss |= first_loss
        early = self._heard in (1, _FIRST_STEPS) or first_loss
        if early or progress.step == progress.num_steps or now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            step = f"{progress.step:,.{0 if progress.step == int(progress.step) else 2}f}"
            self.say("  ".join([f"step {step}/{progress.num_steps:,}", *progress_words(progress)]))

    def evaluated(self, step: int, loss: float) -> None:
        """Print it."""
        self.say(f"step {step:,}: held-out loss {loss:.3f}")

    def ended(self, report: TrainingReport) -> None:
        """Print results, the scoreboard and what to do next."""
        for line in report_lines(report):
            self.say(line)
        if report.scoreboard is not None:
            self.say("held-out questions, exact match, in trained wordings and in new ones:")
            for score in report.scoreboard.scores:
                new = (
                    ""
                    if score.new_accuracy is None
                    else f"  {score.new_accuracy:6.1%}  {score.num_right_new}/{score.num_new}"
                )
                self.say(f"  {score.skill:<16} {score.accuracy:6.1%}  {score.num_right}/{score.num_questions}{new}")
            for sort, mean in report.scoreboard.mean_by_sort.items():
                self.say(f"  mean of {sort:<8} {mean:6.1%}")
            self.say(f"  {'mean of all':<16} {report.scoreboard.mean:6.1%}")
            for name, value in wording_lines(report.scoreboard):
                self.say(f"  {name:<16}{value}")
        for purpose, command in next_commands(report):
            self.say(f"{purpose}:  {command}")

    def say(self, line: str) -> None:
        """Print one line as it is, however long."""
        self.console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)


class BarListener(RunListener):
    """Draws tables, a spinner for the work before and after, and a bar for the steps."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._status = console.status("")
        self._bar: ProgressBar | None = None
        self._task = TaskID(0)

    def noticed(self, text: str) -> None:
        """Print it above the bar."""
        self.console.print(Text("note  ", style="yellow") + Text(text))

    def working(self, what: str) -> None:
        """Turn the spinner and say what is done."""
        self._status.update(Text(f"{what} ..."))
        self._status.start()

    def planned(self, plan: RunPlan) -> None:
        """Draw the table of the plan and an empty bar."""
        self._status.stop()
        self.console.print()
        self.console.print(Text(plan.title, style="bold"))
        self.console.print(_grid(plan_rows(plan)))
        self.console.print()
        self._bar = ProgressBar(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            console=self.console,
            expand=True,
        )
        self._task = self._bar.add_task("training", total=plan.num_steps, words="first step ...")

    def progressed(self, progress: Progress) -> None:
        """Move the bar."""
        if self._bar is not None:
            # Started with the first step: until then a model may still be moved or compiled.
            self._bar.start()
            words = "  ".join(progress_words(progress))
            self._bar.update(self._task, completed=progress.step, total=progress.num_steps, words=words)

    def evaluated(self, step: int, loss: float) -> None:
        """Print it above the bar."""
        self.console.print(Text(f"step {step:,}: held-out loss {loss:.3f}", style="dim"))

    def trained(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()

    def ended(self, report: TrainingReport) -> None:
        """Draw results, the scoreboard and what to do next."""
        self._status.stop()
        self.console.print()
        for line in report_lines(report):
            self.console.print(Text(line), soft_wrap=True)
        if report.scoreboard is not None:
            self.console.print()
            self.console.print(scoreboard_picture(report.scoreboard))
        commands = next_commands(report)
        if commands:
            self.console.print()
        for purpose, command in commands:
            self.console.print(Text(f"{purpose:<10}", style="dim") + Text(command, style="bold cyan"), soft_wrap=True)

    def failed(self) -> None:
        """Give the terminal back, whatever was being drawn."""
        self._status.stop()
        self.trained()


def plan_rows(plan: RunPlan) -> list[tuple[str, str]]:
    """What a person wants to know before a run, as (name, value)."""
    info = plan.info
    rows = [("parameters", f"{_short(info['total_params'])} in all")]
    if info["moe_layers"]:
        rows[0] = (
            "parameters",
            f"{_short(info['total_params'])} in all, {_short(info['active_params'])} active per token "
            f"({info['active_fraction']:.0%}); dense twin {_short(info['dense_twin_params'])}",
        )
        layers = info["moe_layers"] + info["dense_layers"]
        rows.append(
            (
                "experts",
                f"{info['num_experts']} in {info['moe_layers']} of {layers} layers, "
                f"{info['num_experts_per_tok']} per token",
            )
        )
    size = "streamed"
    if plan.num_documents is not None and plan.tokens_per_pass is not None:
        size = f"{plan.num_documents:,} documents, {_short(plan.tokens_per_pass)} tokens"
    rows += [
        ("data", f"{plan.data}: {size}"),
        (
            "to train",
            f"{plan.num_steps:,} steps of {plan.tokens_per_step:,} tokens = {_short(plan.total_tokens)} tokens",
        ),
        (
            "memory",
            f"about {in_bytes(plan.train_state_bytes + plan.activation_bytes)} "
            f"({in_bytes(plan.train_state_bytes)} weights, gradients and optimizer; "
            f"{in_bytes(plan.activation_bytes)} activations); {in_bytes(plan.memory_bytes)} free",
        ),
        ("device", plan.device),
        ("folder", str(plan.output_dir)),
    ]
    if plan.checkpoint:
        rows.append(("resumed", f"from {plan.checkpoint}"))
    return rows


def progress_words(progress: Progress) -> list[str]:
    """The state of training in a few words each."""
    words = []
    if progress.loss is not None:
        words.append(f"loss {progress.loss:.3f}")
    if progress.balance is not None:
        words.append(f"balance {progress.balance:.2f}")
    if progress.tokens_per_second is not None:
        words.append(f"{_short(progress.tokens_per_second)} tok/s")
    if progress.seconds_left is not None:
        # At the end nothing is left: then the time that it took.
        words.append(f"{_clock(progress.seconds_left)} left" if progress.seconds_left else _clock(progress.seconds))
    return words


def report_lines(report: TrainingReport) -> list[str]:
    """What came out, in sentences."""
    whole = "" if report.whole_seconds is None else f"all {report.plan.num_steps:,} steps would take about "
    if not report.steps:
        guess = "guessed from the speed of this machine's matrix products"
        return [f"{whole}{_clock(report.whole_seconds)}, {guess}"] if report.whole_seconds is not None else []
    ended = "tried" if report.tried else "trained" if report.finished else "stopped after"
    peak = in_bytes(report.peak_memory_bytes)
    span = "" if report.timed_steps == report.steps else f", the last {report.timed_steps:,} of them"
    lines = [f"{ended} {report.steps:,} steps{span} in {_clock(report.seconds)}, peak memory {peak}"]
    if report.eval_loss is not None and report.train_loss is not None:
        lines.append(f"loss {report.train_loss:.3f} in training, {report.eval_loss:.3f} on held-out data")
    elif report.train_loss is not None:
        lines.append(f"loss {report.train_loss:.3f} in training")
    if report.whole_seconds is not None:
        speed = "" if report.tokens_per_second is None else f"{_short(report.tokens_per_second)} tok/s at "
        per_step = f"{report.trained_tokens // report.steps:,} tokens per step: "
        lines.append(f"{speed}{per_step}{whole}{_clock(report.whole_seconds)}")
    return lines


def next_commands(report: TrainingReport) -> list[tuple[str, str]]:
    """Commands that make sense after the run, as (purpose, command)."""
    if report.model_dir is None:
        return []
    folder, name = shlex.quote(str(report.model_dir)), placeholder(report.model_dir.name).partition("/")[2]
    commands = [("chat", f"python chat.py --model {folder}")]
    if report.finished:
        commands.append(("share", f"moe-hf push {folder} {name}"))
    else:
        commands.append(("go on", "the same command again"))
    return commands


def scoreboard_picture(board: Scoreboard) -> Group:
    """The scoreboard as bars, side by side as far as the terminal is wide, one block per sort of skill."""
    parts: list[Text | Padding] = []
    for sort, mean in board.mean_by_sort.items():
        scores = sorted((s for s in board.scores if s.sort == sort), key=lambda score: -score.accuracy)
        parts.append(Text(f"{sort}: {mean:.1%} of held-out questions answered exactly, mean over skills", style="bold"))
        parts.append(Padding(Columns([_score_text(score) for score in scores], padding=(0, 3)), (0, 0, 1, 2)))
    parts.append(Text(f"all skills: {board.mean:.1%}", style="bold"))
    parts += [Text(f"{name}: {value.strip()}", style="bold") for name, value in wording_lines(board)]
    return Group(*parts)


def _score_text(score: SkillScore, width: int = 10) -> Text:
    full = round(score.accuracy * width)
    style = "green" if score.accuracy >= 0.9 else "yellow" if score.accuracy >= 0.5 else "red"
    return (
        Text(f"{score.skill[:14]:<14} ")
        + Text("█" * full, style=style)
        + Text("·" * (width - full), style="dim")
        + Text(f" {score.accuracy:4.0%}")
        + Text("" if score.new_accuracy is None else f" /{score.new_accuracy:4.0%}", style="dim")
    )


def _grid(rows: Iterable[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in rows:
        table.add_row(Text(f"  {name}"), Text(value))
    return table


def _short(number: float) -> str:
    """A count in three digits: 1234567 -> 1.23M."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.{2 if number < 10 * size else 1}f}{unit}"
    return f"{number:.0f}"


def _clock(seconds: float) -> str:
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    if whole < 48 * 3600:
        return f"{whole // 3600}:{whole % 3600 // 60:02d} h"
    return f"{whole / 86400:.1f} days"
