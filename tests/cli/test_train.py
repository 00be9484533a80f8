import json
import signal
from pathlib import Path
from random import Random

import datasets
import pytest
import yaml

from moe_hf.cli.progress import LineListener
from moe_hf.cli.train import main
from moe_hf.training.checkpoint import newest_valid_checkpoint
from moe_hf.training.metrics import read_metrics
from moe_hf.training.runs import outcome, planning

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


def test_a_run_prints_its_plan_its_progress_and_what_to_do_next(empty_pictures, capsys, monkeypatch):
    monkeypatch.setattr(outcome, "ANSWER_TOKENS", 2)
    assert main([*FLAGS, "--questions_per_skill", "1"]) == 0
    out = capsys.readouterr().out
    for words in ("parameters", "4 steps of 128 tokens", "step 4/4", "mean of all", "on held-out data"):
        assert words in out
    assert "python chat.py --model runs/tiny-moe" in out
    assert "moe-hf push runs/tiny-moe tiny-moe" in out
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


class FilesLimited(LineListener):
    """From a moment on no file may grow beyond so many bytes, as on a disk that is full."""

    def __init__(self, console, limit, step):
        super().__init__(console)
        self.limit, self.step = limit, step

    def progressed(self, progress):
        if progress.step == self.step:
            self.press()

    def trained(self):
        if self.step is None:
            self.press()

    def press(self):
        resource = pytest.importorskip("resource")
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def free_again():
    """Puts the limit back where it was."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Of the files that a run writes, which is the first that does not fit: a metrics line, weights (by Rust), the
# optimizer's state (by torch), the tokenizer (by Rust), a picture.
@pytest.mark.parametrize(
    ("limit", "step"), [(0, 3), (9_000, 3), (100_000, 3), (0, None), (9_000, None), (20_000, None)]
)
def test_a_full_disk_is_one_line_and_what_was_saved_goes_on(request, capsys, monkeypatch, free_again, limit, step):
    flags = [*FLAGS, "--save_strategy", "steps", "--save_steps", "2", "--questions_per_skill", "0"]
    with monkeypatch.context() as patch:
        patch.setattr("moe_hf.cli.train.listener_for", lambda console: FilesLimited(console, limit, step))
        code = main(flags)
    free_again()
    captured = capsys.readouterr()
    assert code == 1, captured.out
    (line,) = captured.err.splitlines()
    assert line.startswith("train.py: error: [Errno ")
    assert "File too large" in line or "a write failed" in line
    assert newest_valid_checkpoint("runs/tiny-moe") == f"runs/tiny-moe/checkpoint-{2 if step else 4}"
    assert not list(Path("runs/tiny-moe").glob("tmp-checkpoint*"))
    assert not Path("runs/tiny-moe/config.json").exists()
    request.getfixturevalue("empty_pictures")
    assert main(flags) == 0
    assert Path("runs/tiny-moe/config.json").is_file()
    assert Path("runs/tiny-moe/README.md").is_file()


def test_help_lists_our_flags_and_transformers_own(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    out = capsys.readouterr().out
    assert "--moe_size" in out
    assert "--learning_rate" in out
    assert "--config" in out


def test_a_dry_run_says_how_long_the_whole_would_take(capsys):
    assert main([*FLAGS, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "tried 2 steps" in out
    assert "all 4 steps would take about" in out
    assert not Path("runs").exists()


def test_ctrl_c_saves_and_ends_with_code_130(empty_pictures, capsys, monkeypatch):
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


def test_a_dry_run_of_what_does_not_fit_says_a_time_as_well(capsys, monkeypatch):
    monkeypatch.setattr(planning, "free_memory", lambda device: 1)
    assert main([*FLAGS, "--dry_run"]) == 0
    out = capsys.readouterr().out
    assert "no step is tried" in out
    assert "all 4 steps would take about" in out


def test_a_dry_run_of_two_steps_says_a_time_as_well(capsys):
    assert main([*FLAGS, "--max_steps", "2", "--dry_run"]) == 0
    assert "all 2 steps would take about" in capsys.readouterr().out


def test_small_data_is_read_several_times_and_both_curves_are_of_one_quantity(empty_pictures, capsys):
    words = "the cat sat on the mat and then the dog ran after it until night fell".split()
    numbers = Random(0)
    Path("own.txt").write_text(" ".join(numbers.choice(words) for _ in range(450)), encoding="utf-8")
    small = (
        "hidden_size=16 num_attention_heads=2 num_hidden_layers=2 --data own.txt --context_length 32 --tokenizer byte"
    )
    argv = f"--model_overrides {small} --save_strategy no --eval_fraction 0.1 --output_dir own".split()
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert "the data is small: " in out
    run = yaml.safe_load(Path("own/run.yaml").read_text(encoding="utf-8"))
    passes = int(run["num_train_epochs"])
    assert f"so it is read {passes} times" in out
    assert 1 < passes <= planning.MANY_PASSES
    events = read_metrics("own")
    logged = [event for event in events if "loss" in event]
    assert len(logged) >= 20
    assert sum(event["cross_entropy"] for event in logged) == pytest.approx(sum(e["loss"] for e in logged), rel=0.05)
    assert f"loss {logged[-1]['cross_entropy']:.3f} in training" in out
    assert Path("own/loss.png").is_file()
    # What the data decided stands in no one's way.
    assert main(argv) == 2
    assert "already holds a model" in capsys.readouterr().err


def test_unpacked_rows_are_counted_without_their_padding(empty_pictures, capsys):
    rows = [{"text": "a" * length} for length in (3, 60) * 20]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    argv = [*FLAGS, "--data", "rows.jsonl", "--eval_data", "rows.jsonl", "--packing", "none"]
    assert main([*argv, "--max_steps", "20"]) == 0
    # With the token that ends each: 4 and 61, two rows per step.
    assert "20 steps of 65 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags",
    [
        "--lr_scheduler_type reduce_lr_on_plateau --eval_strategy steps --eval_steps 2",
        "--load_best_model_at_end --eval_strategy steps --eval_steps 2 --save_strategy steps --save_steps 2",
        "--attn_implementation topk_sparse",
    ],
)
def test_what_a_run_may_have_a_dry_run_may_have(capsys, flags):
    assert main([*FLAGS, "--dry_run", *flags.split()]) == 0
    assert "would take about" in capsys.readouterr().out
