"""A run is shown as tables and a bar on a terminal, and as lines elsewhere."""

import io
import shlex
from pathlib import Path

import pytest
from rich.console import Console

from moe_hf.cli.progress import BarListener, LineListener, listener_for, next_commands, progress_words
from moe_hf.config.presets import create_moe_config
from moe_hf.models.info import get_moe_model_info
from moe_hf.text.scoreboard import Scoreboard, SkillScore
from moe_hf.training.runs.listeners import Progress, RunPlan, TrainingReport


def terminal(width=80):
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False)


def test_a_terminal_gets_the_bar_and_anything_else_lines():
    assert isinstance(listener_for(terminal()), BarListener)
    assert isinstance(listener_for(Console(file=io.StringIO())), LineListener)


def test_commands_to_copy_quote_a_folder_with_spaces():
    report = TrainingReport(plan=None, finished=True, model_dir=Path("my runs/tiny one"))
    chat, share = (shlex.split(command) for _, command in next_commands(report))
    assert chat[-1] == "my runs/tiny one"
    assert share == ["moe-hf", "push", "my runs/tiny one", "tiny-one"]


PLAN = RunPlan(
    title="Mixture of Experts, tiny, fresh weights",
    info=get_moe_model_info(create_moe_config("tiny")),
    sparse_layers=(0, 2),
    data="the embedded corpus",
    device="cpu",
    output_dir=Path("runs/tiny-moe"),
    checkpoint=None,
    num_steps=4,
    tokens_per_step=128,
    num_documents=40,
    tokens_per_pass=4096,
    train_state_bytes=1,
    activation_bytes=1,
    memory_bytes=10,
)
BOARD = Scoreboard(
    (SkillScore("addition", "generalise", 3, 4, None), SkillScore("facts", "remember", 1, 4, None, 2, 4))
)


def tell_a_run(listener):
    listener.noticed("the data is small")
    listener.working("building the model")
    listener.planned(PLAN)
    for step in range(1, 5):
        listener.progressed(Progress(step, 4, 1.5, 12_345.0, 1.25, 2.0 * step, 8.0 - 2 * step))
    listener.evaluated(2, 1.75)
    listener.trained()
    listener.ended(
        TrainingReport(
            PLAN, finished=True, model_dir=PLAN.output_dir, steps=4, timed_steps=4, seconds=8.0, scoreboard=BOARD
        )
    )


def test_the_bar_shows_loss_balance_and_speed_within_80_columns():
    console = terminal()
    tell_a_run(BarListener(console))
    screen = console.file.getvalue()
    bar = [line for line in screen.replace("\r", "\n").splitlines() if "4/4" in line][-1]
    for word in ("training", "loss 1.500", "balance 1.25", "12.3k tok/s"):
        assert word in bar
    for words in ("the data is small", "step 2: held-out loss 1.750", "all skills:"):
        assert words in screen
    assert "python chat.py --model runs/tiny-moe" in screen


def test_lines_say_what_the_bar_says_and_can_be_read_in_a_file():
    file = io.StringIO()
    tell_a_run(LineListener(Console(file=file)))
    out = file.getvalue()
    assert "\x1b" not in out
    for words in ("note: the data is small", "step 4/4  loss 1.500", "step 2: held-out loss 1.750", "mean of all"):
        assert words in out


def test_a_run_that_fails_gives_the_terminal_back():
    console = terminal()
    listener = BarListener(console)
    listener.planned(PLAN)
    listener.progressed(Progress(1, 4, None, None, None, 1.0, None))
    listener.failed()
    # The cursor, which a bar hides, is shown again.
    assert console.file.getvalue().rindex("\x1b[?25h") > console.file.getvalue().rindex("\x1b[?25l")


@pytest.mark.parametrize(
    ("seconds", "words"), [(59.6, "1:00 min"), (3600, "1:00 h"), (3 * 86400, "3.0 days")], ids=lambda x: str(x)
)
def test_times_are_told_in_the_unit_of_their_size(seconds, words):
    assert progress_words(Progress(4, 4, None, None, None, 0.0, seconds)) == [f"{words} left"]
