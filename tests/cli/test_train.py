import io
import json
import shlex
import signal
from pathlib import Path

import datasets
import pytest
from rich.console import Console

from moe_hf.cli.progress import BarListener, LineListener, listener_for, next_commands
from moe_hf.cli.train import main
from moe_hf.training.runs.listeners import TrainingReport
from moe_hf.training.runs.run import train
from moe_hf.training.runs.settings import parse_arguments

FLAGS = (
    "--model_overrides hidden_size=16 num_attention_heads=2 num_hidden_layers=2 --num_conversations 40 --max_steps 4 "
    "--per_device_train_batch_size 2 --logging_steps 1 --context_length 64 --tokenizer byte --save_strategy no "
    "--eval_data chat.jsonl"
).split()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    chat = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]
    Path("chat.jsonl").write_text(json.dumps({"messages": chat}) + "\n", encoding="utf-8")


def test_a_run_prints_its_plan_its_progress_and_what_to_do_next(capsys):
    assert main([*FLAGS, "--questions_per_skill", "1"]) == 0
    out = capsys.readouterr().out
    for words in ("parameters", "4 steps of 128 tokens", "step 4/4", "mean of all", "on held-out data"):
        assert words in out
    assert "python chat.py --model runs/tiny-moe" in out
    assert "hf upload tiny-moe runs/tiny-moe" in out
    # No terminal: no colours, no bar.
    assert "\x1b" not in out


def test_a_wrong_flag_ends_with_code_2_and_one_line_on_stderr(capsys):
    assert main(["--moe_siz", "tiny"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "train.py: error: unknown flag --moe_siz; did you mean '--moe_size'?; train.py --help lists them all"
    ]


def test_a_folder_that_cannot_be_made_is_refused_before_the_data_is_read(capsys, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert main([*FLAGS, "--data", "nowhere.txt", "--output_dir", str(tmp_path / "file" / "run")]) == 2
    assert "file is a file; name a folder" in capsys.readouterr().err


def test_help_lists_our_flags_and_transformers_own(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert "--moe_size" in out
    assert "--learning_rate" in out
    assert "--config" in out


def terminal(width=80):
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False)


def test_a_terminal_gets_the_bar_and_anything_else_lines():
    assert isinstance(listener_for(terminal()), BarListener)
    assert isinstance(listener_for(Console(file=io.StringIO())), LineListener)


def test_the_bar_shows_loss_balance_and_speed_within_80_columns():
    console = terminal()
    train(parse_arguments([*FLAGS, "--questions_per_skill", "1"]), [BarListener(console)])
    screen = console.file.getvalue()
    bar = [line for line in screen.replace("\r", "\n").splitlines() if "4/4" in line][-1]
    for word in ("training", "loss", "balance", "tok/s"):
        assert word in bar
    assert "all skills:" in screen
    assert "python chat.py --model runs/tiny-moe" in screen


def test_a_dry_run_says_how_long_the_whole_would_take(capsys):
    assert main([*FLAGS, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "tried 2 steps" in out
    assert "all 4 steps would take about" in out
    assert not Path("runs").exists()


def test_ctrl_c_saves_and_ends_with_code_130(capsys, monkeypatch):
    progressed = LineListener.progressed

    def cut(listener, progress):
        progressed(listener, progress)
        if progress.step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(LineListener, "progressed", cut)
    flags = [*FLAGS, "--save_strategy", "steps", "--save_steps", "10", "--questions_per_skill", "0"]
    assert main(flags) == 130
    assert "stopped after 2 steps" in capsys.readouterr().out
    monkeypatch.setattr(LineListener, "progressed", progressed)
    assert main(flags) == 0


def test_commands_to_copy_quote_a_folder_with_spaces():
    report = TrainingReport(plan=None, finished=True, model_dir=Path("my runs/tiny one"))
    chat, share = (shlex.split(command) for _, command in next_commands(report))
    assert chat[-1] == "my runs/tiny one"
    assert share[2:4] == ["tiny one", "my runs/tiny one"]
